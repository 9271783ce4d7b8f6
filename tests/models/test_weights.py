"""Safetensors, the manifest, and the newest complete checkpoint."""

from pathlib import Path

import pytest
import torch

from muomni.models.weights import (
    MANIFEST,
    CheckpointError,
    load_weights,
    newest_complete,
    save_weights,
    verify_manifest,
    write_manifest,
)


def _checkpoint(stage: Path, step: int) -> Path:
    path = stage / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    save_weights({"a": torch.full((64,), float(step))}, path / "weights.safetensors")
    (path / "run.json").write_text("{}")
    write_manifest(path)
    return path


def test_weights_round_trip_bit_for_bit_with_shared_memory_and_strides(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    state = {"x": base, "tied": base, "t": base.T, "n": torch.arange(3), "h": base.bfloat16()}
    save_weights(state, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in state.items())


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: _flip(p / "weights.safetensors"), "damaged"),
        (lambda p: _truncate(p / "weights.safetensors"), "bytes, expected"),
        (lambda p: (p / "run.json").unlink(), "missing"),
        (lambda p: (p / MANIFEST).unlink(), "incomplete"),
        (lambda p: (p / MANIFEST).write_text("{"), "not readable"),
        (lambda p: (p / MANIFEST).write_text('{"files": []}'), "not readable"),
        (lambda p: (p / "extra").write_text(""), "not in the manifest"),
    ],
)
def test_damage_is_found_and_an_older_checkpoint_is_taken_with_the_reason(
    tmp_path: Path, damage, said: str
) -> None:
    older, newer = _checkpoint(tmp_path, 90), _checkpoint(tmp_path, 100)
    assert newest_complete(tmp_path) == newer
    damage(newer)
    with pytest.raises(CheckpointError, match=said):
        verify_manifest(newer)
    skipped: list[str] = []
    assert newest_complete(tmp_path, skipped=skipped) == older
    assert len(skipped) == 1
    assert said in skipped[0]
    assert "step-00000100" in skipped[0]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None


def test_loading_a_damaged_or_missing_file_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, 1) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    for broken in (path, tmp_path / "none"):
        with pytest.raises(CheckpointError) as caught:
            load_weights(broken)
        assert str(broken) in str(caught.value)
        assert "\n" not in str(caught.value)
