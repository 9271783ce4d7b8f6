"""Held-out figures and samples of a stage while it trains."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muomni.train import samples
from muomni.train.stage import Figure, Stage, step_seed
from muomni.train.step import OutOfMemory, Step

_LOG = logging.getLogger(__name__)


def measured(
    stage: Stage, model: nn.Module, take: Step, directory: Path, *, step: int
) -> tuple[list[Figure], dict[str, Any]]:
    """Figures and samples of the validation split, of the averaged weights where there are any.

    The model is in eval mode afterwards. Where there is no memory beside the step's recordings, they are freed.
    Returns the figures, and they and the samples' numbers as a row of the log. Raises OutOfMemory.
    """
    try:
        return _measured(stage, model, take, directory, step=step)
    except torch.OutOfMemoryError:
        _LOG.warning("stage %s: no memory to evaluate beside the step; its recordings are freed.", stage.name)
    take.forget()
    try:
        return _measured(stage, model, take, directory, step=step)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"stage {stage.name}: out of memory while evaluating; choose a smaller train.batch_tokens. The last "
            "checkpoint is on the disk."
        ) from error


@torch.no_grad()
def _measured(
    stage: Stage, model: nn.Module, take: Step, directory: Path, *, step: int
) -> tuple[list[Figure], dict[str, Any]]:
    model.eval()
    torch.manual_seed(step_seed(take.run.seed, 1))
    with contextlib.ExitStack() as averaged:
        for optimizer in take.optimizers.values():
            averaged.enter_context(optimizer.averaged())
        averaged.enter_context(take.net.whole())
        figures, shown = stage.evaluate(model, "validation"), {}
        if take.world.main:
            shown = samples.write(stage, model, directory, step=step)
    return figures, {"step": step, **{f"eval/{f.name}": f.value for f in figures}, **shown}
