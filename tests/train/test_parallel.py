"""A run is the same on one process and on two, which talk over gloo on the CPU."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muomni.config import RunConfig
from muomni.data import embedded
from muomni.models.weights import load_weights, newest_complete
from muomni.recipes import debug
from muomni.train import checkpoint
from muomni.train.loop import train
from muomni.train.metrics import read_rows
from muomni.train.stages import stage
from muomni.train.world import World

sys.path.insert(0, str(Path(__file__).parent))
import together as t

ROOT = Path(__file__).resolve().parents[2]
SmallRun = Callable[..., RunConfig]
BOTH = pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])


def _losses(directory: Path) -> torch.Tensor:
    """(steps, terms) of every logged step."""
    wanted = ("loss/", "grad_norm")
    rows = [[v for k, v in row.items() if k.startswith(wanted)] for row in read_rows(directory)]
    return torch.tensor(rows, dtype=torch.float64)


def _record(directory: Path) -> dict[str, object]:
    """run.json without what depends on the machine."""
    record = json.loads((directory / "run.json").read_text())
    del record["seconds"], record["figures"]
    return record


def _figures(directory: Path) -> torch.Tensor:
    figures = json.loads((directory / "run.json").read_text())["figures"]
    return torch.tensor([figure["value"] for figure in figures], dtype=torch.float64)


def _state(directory: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of the newest checkpoint, whole."""
    found = checkpoint.load(directory)
    assert found is not None
    return {k: v.clone() for k, v in {**found.weights, **found.optimizer}.items()}


@pytest.fixture(scope="module")
def alone(small_data: None, small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some stages trained by one process."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("alone")
    for name in ("text", "codec", "audio", "vision"):
        t.train_stage(small_run(name, micro_batches=2), root)
    return root


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_see_the_losses_and_figures_of_one(
    shard: bool, alone: Path, small_run: SmallRun, tmp_path: Path
) -> None:
    """Packed text; the codec with codebooks that follow all clips; dropout; a parameter without a dimension."""
    names = ("text", "codec", "audio", "vision")
    runs = [small_run(name, micro_batches=2, shard=shard) for name in names]
    assert t.together(2, t.train_stages, runs, tmp_path, t.items(), out=tmp_path / "out") == [0, 0]
    for name, run in zip(names, runs, strict=True):
        torch.testing.assert_close(_losses(tmp_path / name), _losses(alone / name), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(_figures(tmp_path / name), _figures(alone / name), rtol=1e-5, atol=1e-6)
        one, two = _record(alone / name), _record(tmp_path / name)
        assert two["config"]["train"].pop("shard") == run.train.shard and one["config"]["train"].pop("shard") is False
        assert {**two, "parents": None} == {**one, "parents": None}
