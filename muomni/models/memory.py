"""What a model keeps for its backward."""

from __future__ import annotations

from torch import nn

from muomni.nn.block import Stack


def recompute(model: nn.Module, on: bool) -> None:
    """Whether the model's blocks are computed again in the backward, from their inputs alone."""
    for part in model.modules():
        if isinstance(part, Stack):
            part.recompute = on


def draws_again(model: nn.Module) -> bool:
    """Whether blocks that are computed again draw random numbers, and so read and set the generator."""
    return any(isinstance(part, Stack) and part.recompute and part.dropout > 0 for part in model.modules())
