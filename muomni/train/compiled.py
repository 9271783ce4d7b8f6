"""A stage's losses through torch.compile: one graph without a break for all batches of a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from muomni.data.batch import traced
from muomni.train.stage import Stage

Losses = Callable[[nn.Module, Any, str], dict[str, torch.Tensor]]
"""Called as losses(model, batch on the model's device, phase)."""


def loss_function(
    stage: Stage, choice: Literal["auto", "on", "off"], *, device: torch.device, backend: str = "inductor"
) -> Losses:
    """`stage.losses`, compiled when the choice is "on", or "auto" and the device is CUDA.

    Backward is compiled with it. A break in the graph raises; so it does not slow a run down unseen.
    """
    if choice == "off" or (choice == "auto" and device.type != "cuda"):
        return stage.losses
    compiled = torch.compile(stage.losses, fullgraph=True, dynamic=False, backend=backend)
    return lambda model, batch, phase: compiled(model, traced(batch), phase)
