"""What every Triton backend needs: whether Triton can run here, tile shapes, launching, and recording launches."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

# Fused multiply-add is wanted everywhere; Triton 3.10 would turn it off by default.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
"""Launch options of every kernel unless it says otherwise."""


class Launch(NamedTuple):
    """A launch as `record_launches` keeps it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[torch.Tensor | int, ...]
    """In the order of the kernel's parameters."""
    constants: dict[str, Any]
    """constexpr arguments and launch options."""


# Looked up once and without importing triton: torch.compile traces what asks for it.
_INSTALLED = importlib.util.find_spec("triton") is not None

_recorders: list[list[Launch]] = []


def interpreting() -> bool:
    """Whether Triton's interpreter runs kernels on the CPU (TRITON_INTERPRET=1 before triton was imported)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def available() -> str | None:
    """None when Triton kernels can run on this machine, else the reason against it."""
    if not _INSTALLED:
        return "triton is not installed"
    if interpreting() or torch.cuda.is_available():
        return None
    return "needs a CUDA device, this machine has none"


def reason_against(x: torch.Tensor, *others: torch.Tensor | None) -> str | None:
    """None when Triton can run on this tensor with the op's other ones beside it, else the reason against it."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"needs float16, bfloat16 or float32, got {x.dtype}"
    if not (x.is_cuda or interpreting()):
        return f"needs a CUDA tensor, got {x.device.type}"
    for other in others:
        if other is not None and other.device != x.device:
            return f"needs all tensors on one device, got {x.device} and {other.device}"
    return None if _INSTALLED else "triton is not installed"


def rows_per_tile(width: int) -> int:
    """Rows of a [rows, width] tile for four warps: 16 at 128, 8 at 256, 4 at 512.

    Below 128 as many as give every lane 8 elements, one 16-byte access of bf16.
    """
    padded = next_power_of_two(width)
    return max(1, min(max(16, 1024 // padded), 2048 // padded))


def ceil_div(n: int, size: int) -> int:
    """Tiles of a size that cover n."""
    return -(-n // size)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def n_programs(x: torch.Tensor, tiles: int, *, per_multiprocessor: int = 4) -> int:
    """Programs of a persistent kernel: at most so many per multiprocessor, all with about equally many tiles."""
    multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    return ceil_div(tiles, ceil_div(tiles, per_multiprocessor * multiprocessors))


def launch(
    kernel: Any, grid: tuple[int, ...], x: torch.Tensor, *rest: torch.Tensor | int, **constants: Any
) -> None:
    """Start a Triton kernel on x's device with OPTIONS.

    x, rest: the kernel's run-time arguments; constants: its constexpr arguments and further options.
    """
    if _recorders:
        _recorders[-1].append(Launch(kernel, grid, (x, *rest), constants))
        return
    options = {**OPTIONS, **constants}
    # Triton launches on the current device, whichever the tensors are on.
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            kernel[grid](x, *rest, **options)
    else:
        kernel[grid](x, *rest, **options)


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Inside the block launches are listed and not started.

    It gives the exact variants a call would compile, on tensors of any device (meta tensors too), without a GPU.
    """
    _recorders.append([])
    try:
        yield _recorders[-1]
    finally:
        _recorders.pop()
