"""A finished model's directory: what is loaded is what was saved, and any damage is one line that names the file."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import muomni
from muomni.data import embedded
from muomni.infer.session import Session, load
from muomni.models.griffin_lim import GriffinLim
from muomni.models.weights import CheckpointError, load_weights, write_manifest

FILES = {"MANIFEST.json", "README.md", "config.json", "model.safetensors", "tokenizer.json"}


@pytest.fixture
def saved(session: Session, tmp_path: Path) -> Path:
    return session.save_pretrained(tmp_path / "a model")


def _error(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(directory, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_loaded_is_bit_for_bit_what_was_saved(session: Session, saved: Path) -> None:
    loaded = muomni.from_pretrained(saved, device="cpu")
    assert {path.name for path in saved.iterdir()} == FILES
    assert {path.name for path in saved.parent.iterdir()} == {saved.name}
    mine, theirs = session.engine.model.state_dict(), loaded.engine.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    picture = embedded.SET.file(embedded.SET.pictures("test")[0])
    replies = [one.chat("who is it?", image=picture, max_new_tokens=8) for one in (session, loaded)]
    assert replies[0].text == replies[1].text
    assert np.array_equal(replies[0].audio.waveform, replies[1].audio.waveform)
    assert loaded.voices == session.voices


def test_float16_is_half_as_large_and_close(session: Session, tmp_path: Path) -> None:
    whole, half = (session.save_pretrained(tmp_path / d, dtype=d) for d in ("float32", "float16"))
    size = {path: (path / "model.safetensors").stat().st_size for path in (whole, half)}
    assert size[half] < 0.6 * size[whole]
    loaded = load(half, device="cpu").engine.model.state_dict()
    for name, value in session.engine.model.state_dict().items():
        assert loaded[name].dtype == value.dtype
        # Ten bits behind the point of a number that is not tiny.
        torch.testing.assert_close(loaded[name], value, rtol=2**-11, atol=2**-24)


def test_a_number_that_float16_cannot_hold_stays_float32(session: Session, tmp_path: Path) -> None:
    sums = session.engine.model.codec.quantizer.mean_sums
    sums.fill_(1e6)
    path = session.save_pretrained(tmp_path / "half", dtype="float16")
    assert load_weights(path / "model.safetensors")["codec.quantizer.mean_sums"].dtype == torch.float32
    assert torch.equal(load(path, device="cpu").engine.model.codec.quantizer.mean_sums, sums)


def test_a_model_without_a_vocoder_speaks_by_griffin_lim(
    tmp_path: Path, write_run: Callable[..., object]
) -> None:
    write_run(tmp_path)
    shutil.rmtree(tmp_path / "vocoder")
    first = load(tmp_path, device="cpu")
    again = load(first.save_pretrained(tmp_path / "saved"), device="cpu")
    assert isinstance(again.engine.model.vocoder, GriffinLim)
    assert any("vocoder is not trained" in note for note in again.notes)
    assert np.array_equal(first.speak("the cat").waveform, again.speak("the cat").waveform)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_bit_in_any_file_is_found(name: str, saved: Path) -> None:
    path = saved / name
    payload = bytearray(path.read_bytes())
    # Of the manifest a digit of a digest: a bit of its white space would change nothing it says.
    payload[payload.index(b'"sha256": "') + 12 if name == "MANIFEST.json" else len(payload) // 2] ^= 1
    path.write_bytes(payload)
    error = _error(saved)
    assert "save it or download it again" in error
    assert name in error or name == "MANIFEST.json"


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(name: str, saved: Path) -> None:
    (saved / name).unlink()
    error = _error(saved)
    assert name in error
    assert "missing" in error


@pytest.mark.parametrize("name", sorted(FILES - {"MANIFEST.json"}))
def test_a_file_of_another_model_is_found(
    name: str, saved: Path, tmp_path: Path, write_run: Callable[..., object]
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    write_run(root, seed=5, max_seq_len=64)
    other = load(root, device="cpu").save_pretrained(tmp_path / "other", dtype="float16")
    (other / "tokenizer.json").write_text((saved / "tokenizer.json").read_text() + " ")
    shutil.copy(other / name, saved / name)
    assert name in _error(saved)


def test_a_cut_file_is_found_by_its_size(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}: " in _error(saved)


def test_a_pickle_is_not_read_even_when_the_manifest_vouches_for_it(saved: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (saved / "sprung",)

    (saved / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    write_manifest(saved)
    assert "not readable as safetensors" in _error(saved)
    assert not (saved / "sprung").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": 99}, "is of format 99, expected 3"),
        ({"model": {}}, "missing; ModelConfig needs it"),
        ({"stages": 3}, "is not a model's of this version"),
        ({"vocoder": False}, "weight vocoder"),
    ],
)
def test_a_config_of_another_version_is_one_line(saved: Path, changes: dict, expected: str) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    write_manifest(saved)
    assert expected in _error(saved)


def test_a_save_replaces_a_model_and_nothing_else(session: Session, saved: Path, tmp_path: Path) -> None:
    session.save_pretrained(saved, dtype="float16")
    assert json.loads((saved / "config.json").read_text())["dtype"] == "float16"
    assert {path.name for path in saved.iterdir()} == FILES
    (saved / "diary.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"diary\.txt, which is no file of a model"):
        session.save_pretrained(saved)
    assert (saved / "diary.txt").read_text() == "mine"
    with pytest.raises(CheckpointError, match="is a file"):
        session.save_pretrained(saved / "diary.txt")


def test_a_save_that_fails_leaves_what_was_there(
    session: Session, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("muomni.infer.pretrained.files.sync", full)
    with pytest.raises(OSError, match="No space left"):
        session.save_pretrained(saved, dtype="float16")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert {path.name for path in saved.parent.iterdir()} == {saved.name}


def test_hidden_files_such_as_a_clone_s_are_no_damage(saved: Path) -> None:
    (saved / ".gitattributes").write_text("* text\n")
    load(saved, device="cpu")
