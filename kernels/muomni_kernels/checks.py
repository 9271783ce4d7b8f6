"""Checks shared by the public ops: one line that names the argument, what was expected and what came."""

from __future__ import annotations

import torch


def floating(name: str, x: torch.Tensor) -> None:
    """Raises ValueError unless x holds floating-point numbers."""
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point dtype, got {x.dtype}.")


def one_device(name: str, x: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Raises ValueError for the first of the other tensors that is not on the device of x, which `name` names."""
    for other, tensor in others.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{other}: expected {name}'s device {x.device}, got {tensor.device}; move it there."
            )
