"""mel_downsample, 100 Hz -> 12.5 Hz: checks, documentation, dispatch, and its operators for a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from muomni_kernels import checks, cpp, mel_reference, registry, triton_support
from muomni_kernels.library import operator


def check_groups(factor: int, mode: str) -> None:
    """Raises ValueError for a factor or mode that mel_downsample does not know."""
    if not 1 <= factor <= 65_536 or mode not in ("stack", "mean", "max"):
        raise ValueError(
            f"factor, mode: expected 1 to 65536 and stack, mean or max, got {factor} and {mode!r}."
        )


def mel_downsample(
    frames: torch.Tensor,
    *,
    factor: int = 8,
    mode: str = "stack",
    cu_frames: np.ndarray | torch.Tensor | None = None,
    n_rows: int | None = None,
) -> torch.Tensor:
    """Every `factor` frames of a clip become one row: 100 Hz -> 12.5 Hz at factor 8.

    frames:    (n, width) float, one clip, or with cu_frames (clips + 1,) clips one after another. Kept.
    mode:      "stack": side by side, factor * width columns, a short last group filled with zeros;
               "mean": over the frames there are; "max": of them, its gradient to the first that holds it.
    cu_frames: int32 or int64 offsets that rise from 0. On a GPU they are never read by the host, and not checked.
    n_rows:    rows of the result, for static shapes: those behind the clips' are zero, and frames behind
               cu_frames[-1] belong to no clip. Needed with cu_frames on a GPU, where rows that do not fit are
               left out, and under torch.compile. None: just as many as the clips give.
    Returns (n_rows, width or factor * width): ceil(n / factor) rows a clip, frames' dtype; no group spans two
    clips. Differentiable in frames. Raises ValueError for other shapes or names, and for too few rows or unsound
    offsets where those are on the CPU.
    """
    if frames.ndim != 2 or not frames.is_floating_point():
        raise ValueError(f"frames: expected (n, width) float, got {tuple(frames.shape)} {frames.dtype}.")
    check_groups(factor, mode)
    if n_rows is not None and n_rows < 0:
        raise ValueError(f"n_rows: expected at least 0, got {n_rows}.")
    n = frames.shape[0]
    if cu_frames is None:
        n_rows = -(-n // factor) if n_rows is None else n_rows
        # Made on the device: copying two numbers there would make the host wait.
        cu_in = torch.arange(2, device=frames.device) * n
    else:
        cu_in = torch.as_tensor(cu_frames)
        if cu_in.device.type != "cpu" or torch.compiler.is_compiling():
            if n_rows is None:
                raise ValueError(
                    "n_rows: expected the number of rows, because cu_frames is not read; got None."
                )
            checks.one_device("frames", frames, cu_frames=cu_in)
            checks.offsets_like("cu_frames", cu_in)
        else:
            cu_in = checks.offsets("cu_frames", cu_in, n, all_used=n_rows is None)
            n_needed = int(((cu_in.diff() + factor - 1) // factor).sum())
            if n_rows is not None and n_rows < n_needed:
                raise ValueError(f"n_rows: expected at least {n_needed} for these clips, got {n_rows}.")
            n_rows = n_needed if n_rows is None else n_rows
            cu_in = cu_in.to(frames.device, non_blocking=True)
    cu_rows = torch.nn.functional.pad(
        ((cu_in.diff() + factor - 1) // factor).cumsum(0, dtype=cu_in.dtype), (1, 0)
    )
    arguments = (frames, cu_in, cu_rows, factor, mode, n_rows)
    return registry.select("mel_downsample", *arguments)(*arguments)


def _fake(
    frames: torch.Tensor, cu_frames: torch.Tensor, cu_rows: torch.Tensor, factor: int, mode: str, n_rows: int
) -> torch.Tensor:
    return frames.new_empty(n_rows, frames.shape[1] * (factor if mode == "stack" else 1))


@operator(
    "mel_downsample_forward(Tensor frames, Tensor cu_frames, Tensor cu_rows, int factor, str mode, SymInt n_rows) "
    "-> Tensor",
    fake=_fake,
)
def mel_downsample_forward(
    frames: torch.Tensor, cu_frames: torch.Tensor, cu_rows: torch.Tensor, factor: int, mode: str, n_rows: int
) -> torch.Tensor:
    """(n_rows, width or factor * width)."""
    from muomni_kernels import triton_mel

    return triton_mel.forward(frames, cu_frames, cu_rows, factor, mode, n_rows)


def _fake_backward(
    dy: torch.Tensor,
    frames: torch.Tensor,
    cu_frames: torch.Tensor,
    cu_rows: torch.Tensor,
    factor: int,
    mode: str,
    n_frames: int,
) -> torch.Tensor:
    return dy.new_empty(n_frames, dy.shape[1] // (factor if mode == "stack" else 1))


@operator(
    "mel_downsample_backward(Tensor dy, Tensor frames, Tensor cu_frames, Tensor cu_rows, int factor, str mode, "
    "SymInt n_frames) -> Tensor",
    fake=_fake_backward,
)
def mel_downsample_backward(
    dy: torch.Tensor,
    frames: torch.Tensor,
    cu_frames: torch.Tensor,
    cu_rows: torch.Tensor,
    factor: int,
    mode: str,
    n_frames: int,
) -> torch.Tensor:
    """d frames (n_frames, width)."""
    from muomni_kernels import triton_mel

    return triton_mel.backward(dy, frames, cu_frames, cu_rows, factor, mode, n_frames)


class MelDownsample(torch.autograd.Function):
    """Rows of frames."""

    @staticmethod
    def forward(
        ctx: Any,
        frames: torch.Tensor,
        cu_frames: torch.Tensor,
        cu_rows: torch.Tensor,
        factor: int,
        mode: str,
        n_rows: int,
    ) -> torch.Tensor:
        # Only max looks at the frames again.
        ctx.save_for_backward(frames if mode == "max" else frames.new_empty(0), cu_frames, cu_rows)
        ctx.factor, ctx.mode, ctx.n_frames = factor, mode, frames.shape[0]
        return mel_downsample_forward(frames, cu_frames, cu_rows, factor, mode, n_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_frames = mel_downsample_backward(grads[0], *ctx.saved_tensors, ctx.factor, ctx.mode, ctx.n_frames)
        return d_frames, None, None, None, None, None


def _cpp(
    frames: torch.Tensor, cu_frames: torch.Tensor, cu_rows: torch.Tensor, factor: int, mode: str, n_rows: int
) -> torch.Tensor:
    """Clips by the extension, then rows of no clip."""
    used, rows = int(cu_frames[-1]), int(cu_rows[-1])
    out = cpp.downsample(frames if used == len(frames) else frames[:used], cu_frames, cu_rows, factor, mode)
    return out if rows == n_rows else torch.nn.functional.pad(out, (0, 0, 0, n_rows - rows))


registry.register(
    "mel_downsample", "triton", MelDownsample.apply,
    supports=lambda frames, *_: triton_support.reason_against(frames), available=triton_support.available,
)  # fmt: skip
registry.register("mel_downsample", "cpp", _cpp, supports=cpp.downsample_supports, available=cpp.available)
registry.register("mel_downsample", "reference", mel_reference.downsample)
