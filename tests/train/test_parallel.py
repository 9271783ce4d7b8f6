"""A run is the same on one process and on two, which talk over gloo on the CPU."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muomni.config import RunConfig
from muomni.train.metrics import read_rows

sys.path.insert(0, str(Path(__file__).parent))
from together import chosen_items, together, train_stage

SmallRun = Callable[..., RunConfig]


def _losses(directory: Path) -> list[list[float]]:
    rows = read_rows(directory)
    return [[v for k, v in row.items() if k.startswith(("loss/", "grad_norm"))] for row in rows]


def _parents(trained: Path, root: Path) -> None:
    root.mkdir()
    shutil.copy(trained / "tokenizer.json", root)
    shutil.copytree(trained / "text", root / "text")


@pytest.fixture(scope="module")
def alone(small_data: None, small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each stage trained by one process."""
    torch.set_num_threads(1)
    roots = {}
    for name in ("text", "codec", "audio"):
        roots[name] = tmp_path_factory.mktemp(name)
        train_stage(small_run(name, micro_batches=2), roots[name], chosen_items())
    return roots


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["text", "codec", "audio"])
def test_two_processes_see_the_losses_of_one(
    name: str, shard: bool, alone: dict[str, Path], small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run(name, micro_batches=2, shard=shard)
    assert together(2, train_stage, run, tmp_path, chosen_items(), out=tmp_path / "out") == [0, 0]
    one, two = (torch.tensor(_losses(root / name), dtype=torch.float64) for root in (alone[name], tmp_path))
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-6)
