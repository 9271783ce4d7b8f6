"""benchmarks.saving: both ways save the same, and what is printed says of what."""

from pathlib import Path

import pytest
import torch

from benchmarks import saving
from muomni.models.weights import load_weights, newest_complete
from muomni.train.checkpoint import Checkpoint


def test_both_ways_leave_the_same_checkpoint(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(30), "b": torch.arange(4)}
    times = saving.measure(Checkpoint(weights=tensors, optimizer=tensors, record={}), tmp_path, rounds=2)
    assert [len(seconds) for seconds in times] == [2, 2]
    for way in ("waited", "background"):
        path = newest_complete(tmp_path / way)
        assert path is not None and path.name == "step-00000001"
        found = load_weights(path / "weights.safetensors")
        assert all(torch.equal(found[k], v) for k, v in tensors.items())


def test_it_says_what_was_saved_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert saving.main(["--size", "nano", "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out and "nano, stage omni:" in out and "training waits" in out
