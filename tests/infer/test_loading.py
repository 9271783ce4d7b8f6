"""Loading a run: what is wrong with it is one line with the remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muomni.config import ThinkerConfig
from muomni.data.text import TokenizerError
from muomni.infer.session import load
from muomni.models.weights import CheckpointError, write_manifest


@pytest.fixture
def copy(run_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_root, tmp_path / "run"))


def _error(root: Path) -> str:
    with pytest.raises((CheckpointError, TokenizerError)) as caught:
        load(root, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_loaded_weights_are_the_saved_ones(tmp_path: Path, write_run: Callable) -> None:
    model = write_run(tmp_path, seed=3)
    loaded = load(tmp_path, device="cpu").engine.model
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_missing_directory_and_stage_name_the_command(copy: Path, tmp_path: Path) -> None:
    assert "muomni train --stage text" in _error(tmp_path / "nothing")
    shutil.rmtree(copy / "codec")
    assert f"stage codec is not trained; run `muomni train --stage codec --run {copy}`" in _error(copy)


def test_a_flipped_bit_is_found_and_an_older_checkpoint_is_used_with_a_note(copy: Path) -> None:
    old = copy / "talker" / "checkpoints" / "step-00000001"
    new = Path(shutil.copytree(old, old.with_name("step-00000002")))
    weights = new / "weights.safetensors"
    payload = bytearray(weights.read_bytes())
    payload[-9] ^= 4
    weights.write_bytes(payload)
    notes = load(copy, device="cpu").notes
    assert len(notes) == 1
    assert "step-00000002" in notes[0]
    shutil.rmtree(old)
    assert "stage talker has no usable checkpoint" in _error(copy)


def test_another_size_is_named(copy: Path, tmp_path: Path, write_run: Callable) -> None:
    thinker = ThinkerConfig(
        vocab_size=320, d_model=64, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128
    )
    other = tmp_path / "other"
    other.mkdir()
    write_run(other, thinker=thinker)
    shutil.rmtree(copy / "omni")
    shutil.copytree(other / "omni", copy / "omni")
    assert "thinker.n_layers is 1 there, 2 here" in _error(copy)


def test_a_stage_may_come_from_a_model_that_differs_in_what_it_does_not_depend_on(copy: Path) -> None:
    path = copy / "talker" / "checkpoints" / "step-00000001"
    record = json.loads((path / "run.json").read_text())
    model = record["config"]["model"]
    for part, name, value in (("vision", "n_layers", 3), ("codec", "n_layers", 3)):
        before = model[part][name]
        model[part][name] = value
        (path / "run.json").write_text(json.dumps(record))
        write_manifest(path)
        if part == "vision":
            assert load(copy, device="cpu").speak("the cat").seconds > 0
        else:
            assert f"codec.n_layers is 3 there, {before} here" in _error(copy)
        model[part][name] = before


def test_stages_may_differ_in_what_training_alone_depends_on(copy: Path) -> None:
    path = copy / "talker" / "checkpoints" / "step-00000001"
    record = json.loads((path / "run.json").read_text())
    record["config"]["model"]["talker"]["dropout"] = 0.7
    record["config"]["model"]["vocoder"]["adversarial_from"] = 0.1
    (path / "run.json").write_text(json.dumps(record))
    write_manifest(path)
    assert load(copy, device="cpu").speak("the cat").seconds > 0


def test_a_talker_of_another_thinker_is_refused(copy: Path) -> None:
    path = copy / "talker" / "checkpoints" / "step-00000001"
    record = json.loads((path / "run.json").read_text())
    record["parents"]["omni"] = "0" * 64
    (path / "run.json").write_text(json.dumps(record))
    write_manifest(path)
    assert "was trained on another stage omni" in _error(copy)


def test_missing_tokenizer_names_the_stage(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert "muomni train --stage text" in _error(copy)
