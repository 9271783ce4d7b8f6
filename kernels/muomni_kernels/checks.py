"""Checks shared by the public ops: one line that names the argument, what was expected and what came."""

from __future__ import annotations

import numpy as np
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


def apart(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """other, as a tensor of its own where it is x itself.

    Of one tensor given twice to an autograd function torch.compile counts one gradient (torch 2.11) or refuses (2.13).
    """
    return other.view_as(other) if other is x else other


def offsets_like(name: str, cu: torch.Tensor) -> None:
    """Raises ValueError unless cu has the shape and dtype of offsets, (clips + 1,) int32 or int64."""
    if cu.ndim != 1 or cu.shape[0] < 1 or cu.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: expected (clips + 1,) int32 or int64, got {tuple(cu.shape)} {cu.dtype}.")


def offsets(name: str, cu: np.ndarray | torch.Tensor, total: int, *, all_used: bool = True) -> torch.Tensor:
    """cu as int64 on the CPU. Raises ValueError unless it rises from 0 to total, or at most to total."""
    cu = torch.as_tensor(cu)
    offsets_like(name, cu)
    cu = cu.to("cpu", torch.int64).contiguous()
    last = int(cu[-1])
    if int(cu[0]) != 0 or last > total or (all_used and last != total) or bool((cu.diff() < 0).any()):
        raise ValueError(
            f"{name}: expected offsets rising from 0 to {'' if all_used else 'at most '}{total}, got "
            f"{cu.tolist()[:8]}."
        )
    return cu
