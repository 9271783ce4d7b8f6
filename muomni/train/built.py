"""A stage's model before its first step, so that one that was timed need not be built again to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from muomni.config import RunConfig
from muomni.train import checkpoint
from muomni.train.stage import Stage, step_seed


@dataclass(frozen=True, kw_only=True)
class Built:
    """What `build` made; the stage holds what it has read."""

    model: nn.Module
    """As `Stage.build` gives it."""
    parents: dict[str, str | None]
    """The parents it was made from, of `parents_of`."""


def parents_of(stage: Stage, root: Path) -> dict[str, str | None]:
    """Hashes of the stages that a stage loads parts of, as they are now; None for one that is not there."""
    return {parent: checkpoint.manifest_hash(root / parent) for parent in stage.parents}


def build(stage: Stage, run: RunConfig, root: Path) -> Built:
    """Read a stage's data and make its model from the run's seed. Seeds the global generator."""
    torch.manual_seed(step_seed(run.seed, 0))
    parents = parents_of(stage, root)
    return Built(model=stage.build(run, root), parents=parents)
