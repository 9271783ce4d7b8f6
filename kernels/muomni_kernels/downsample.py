"""mel_downsample, 100 Hz -> 12.5 Hz: checks, documentation, dispatch, and its operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from muomni_kernels import checks, cpp, mel_reference, registry, triton_support
from muomni_kernels.library import operator

LARGEST = 65_536
"""Most frames of a group and of a window."""


def check_groups(factor: int, mode: str) -> None:
    """Raises ValueError for a factor or mode that mel_downsample does not know."""
    if not 1 <= factor <= LARGEST or mode not in ("stack", "mean", "max"):
        raise ValueError(
            f"factor, mode: expected 1 to 65536 and stack, mean or max, got {factor} and {mode!r}."
        )


def _check_window(window: int, lead: int, edge: str, *, plain: bool, mode: str) -> None:
    """Raises ValueError for a window that a row cannot have."""
    if not 1 <= window <= LARGEST or not 0 <= lead < window or edge not in ("zeros", "repeat"):
        raise ValueError(
            "window, lead, edge: expected 1 to 65536, 0 to window - 1 and zeros or repeat, got "
            f"{window}, {lead} and {edge!r}."
        )
    if mode != "stack" and not plain:
        raise ValueError(
            f"window, lead, edge: expected none of them for mode {mode!r}, got {window}, {lead} and {edge!r}; "
            "only 'stack' has windows."
        )


def mel_downsample(
    frames: torch.Tensor,
    *,
    factor: int = 8,
    mode: str = "stack",
    window: int | None = None,
    lead: int = 0,
    edge: str = "zeros",
    lengths: np.ndarray | torch.Tensor | None = None,
    cu_frames: np.ndarray | torch.Tensor | None = None,
    n_rows: int | None = None,
) -> torch.Tensor:
    """Every `factor` frames of a clip become one row: 100 Hz -> 12.5 Hz at factor 8.

    frames:    (n, width) float, one clip, or with cu_frames (clips + 1,) clips one after another; or (B, T, width)
               a padded batch. Kept.
    mode:      "stack": side by side, window * width columns; "mean": over the frames there are; "max": of them, its
               gradient to the first that holds it.
    window:    frames side by side in a row of "stack"; None: factor. More than factor overlap, fewer skip frames.
    lead:      frames a row reaches back before the first of its group, fewer than window.
    edge:      what a row shows beyond its clip: "zeros", or with "repeat" the clip's first or last frame.
               FunASR's low frame rate is factor=6, window=7, lead=3, edge="repeat".
    lengths:   (B,) int32 or int64, frames of each clip of a padded batch, the others are never looked at; None: all
               T. On a GPU and under torch.compile not checked but clamped to 0 to T.
    cu_frames: int32 or int64 offsets that rise from 0. On a GPU they are never read by the host, and not checked.
    n_rows:    rows of the result, for static shapes: those behind the clips' are zero, and frames behind
               cu_frames[-1] belong to no clip. Needed with cu_frames on a GPU, where rows that do not fit are
               left out, and under torch.compile. None: just as many as the clips give.
    Returns (n_rows, width or window * width): ceil(n / factor) rows a clip, frames' dtype; no row sees two clips. Of
    a padded batch (B, ceil(T / factor), ...), rows behind ceil(length / factor) are zero. Differentiable in frames;
    gradients of a frame that several rows show are added up in fp32. Raises ValueError for other shapes or names,
    for a window, lead or edge with a mode other than "stack", and for too few rows, unsound lengths or offsets where
    those are on the CPU.
    """
    if frames.ndim not in (2, 3) or not frames.is_floating_point():
        raise ValueError(
            f"frames: expected (n, width) or (B, T, width) float, got {tuple(frames.shape)} {frames.dtype}."
        )
    check_groups(factor, mode)
    plain = window in (None, factor) and lead == 0 and edge == "zeros"
    window = factor if window is None else window
    _check_window(window, lead, edge, plain=plain, mode=mode)
    if n_rows is not None and n_rows < 0:
        raise ValueError(f"n_rows: expected at least 0, got {n_rows}.")
    if frames.ndim == 3:
        if cu_frames is not None or n_rows is not None:
            raise ValueError("cu_frames, n_rows: expected neither for a padded batch (B, T, width).")
        clips, cu_rows = _padded(frames, lengths, factor)
        shape = (
            frames.shape[0],
            -(-frames.shape[1] // factor),
            frames.shape[2] * (window if mode == "stack" else 1),
        )
        n_rows, frames = shape[0] * shape[1], frames.reshape(shape[0] * frames.shape[1], frames.shape[2])
    else:
        if lengths is not None:
            raise ValueError("lengths: expected a padded batch (B, T, width); clips in a row have cu_frames.")
        clips, cu_rows, n_rows = _one_after_another(frames, cu_frames, n_rows, factor)
        shape = None
    arguments = (frames, clips, cu_rows, factor, mode, n_rows, window, lead, edge)
    rows = registry.select("mel_downsample", *arguments)(*arguments)
    return rows if shape is None else rows.view(shape)


def _one_after_another(
    frames: torch.Tensor, cu_frames: np.ndarray | torch.Tensor | None, n_rows: int | None, factor: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(offsets, offsets of their rows, number of rows) of one clip or several."""
    n = frames.shape[0]
    if cu_frames is None:
        n_needed = -(-n // factor)
        if n_rows is not None and n_rows < n_needed:
            raise ValueError(f"n_rows: expected at least {n_needed} for {n} frames, got {n_rows}.")
        # Made on the device: copying two numbers there would make the host wait.
        both = torch.arange(2, device=frames.device)
        return both * n, both * n_needed, n_needed if n_rows is None else n_rows
    cu = torch.as_tensor(cu_frames)
    if cu.device.type != "cpu" or torch.compiler.is_compiling():
        if n_rows is None:
            raise ValueError("n_rows: expected the number of rows, because cu_frames is not read; got None.")
        checks.one_device("frames", frames, cu_frames=cu)
        checks.offsets_like("cu_frames", cu)
    else:
        cu = checks.offsets("cu_frames", cu, n, all_used=n_rows is None)
        n_needed = int(((cu.diff() + factor - 1) // factor).sum())
        if n_rows is not None and n_rows < n_needed:
            raise ValueError(f"n_rows: expected at least {n_needed} for these clips, got {n_rows}.")
        n_rows = n_needed if n_rows is None else n_rows
        cu = cu.to(frames.device, non_blocking=True)
    cu_rows = torch.nn.functional.pad(((cu.diff() + factor - 1) // factor).cumsum(0, dtype=cu.dtype), (1, 0))
    return cu, cu_rows, n_rows


def _padded(
    frames: torch.Tensor, lengths: np.ndarray | torch.Tensor | None, factor: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(begins and ends of the clips in turn, or offsets where all are full; offsets of their rows)."""
    n_clips, n_frames = frames.shape[:2]
    clip = torch.arange(n_clips + 1, device=frames.device)
    cu_rows = clip * -(-n_frames // factor)
    if lengths is None:
        return clip * n_frames, cu_rows
    lengths = torch.as_tensor(lengths)
    if lengths.shape != (n_clips,) or lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"lengths: expected ({n_clips},) int32 or int64, got {tuple(lengths.shape)} {lengths.dtype}."
        )
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        checks.one_device("frames", frames, lengths=lengths)
    else:
        if bool(((lengths < 0) | (lengths > n_frames)).any()):
            raise ValueError(f"lengths: expected 0 to {n_frames}, got {lengths.tolist()[:8]}.")
        lengths = lengths.to(frames.device, non_blocking=True)
    begins = clip[:-1] * n_frames
    return torch.stack((begins, begins + lengths.clamp(0, n_frames)), 1).flatten(), cu_rows


def _backend(name: str) -> Any:
    """The functions (forward, backward) of a backend."""
    if name == "cpp":
        return cpp.downsample, cpp.downsample_backward
    from muomni_kernels import triton_mel

    return triton_mel.forward, triton_mel.backward


_CLIPS = "Tensor clips, Tensor cu_rows, int factor, str mode, SymInt n, int window, int lead, str edge, str backend"


def _fake(
    frames: torch.Tensor,
    clips: torch.Tensor,
    cu_rows: torch.Tensor,
    factor: int,
    mode: str,
    n: int,
    window: int,
    lead: int,
    edge: str,
    backend: str,
) -> torch.Tensor:
    return frames.new_empty(n, frames.shape[1] * (window if mode == "stack" else 1))


@operator(f"mel_downsample_forward(Tensor frames, {_CLIPS}) -> Tensor", fake=_fake)
def mel_downsample_forward(frames: torch.Tensor, *rest: Any) -> torch.Tensor:
    """rest: as the schema's, n rows. (n, width or window * width)."""
    return _backend(rest[-1])[0](frames, *rest[:-1])


def _fake_backward(
    dy: torch.Tensor,
    frames: torch.Tensor,
    clips: torch.Tensor,
    cu_rows: torch.Tensor,
    factor: int,
    mode: str,
    n: int,
    window: int,
    lead: int,
    edge: str,
    backend: str,
) -> torch.Tensor:
    return dy.new_empty(n, dy.shape[1] // (window if mode == "stack" else 1))


@operator(f"mel_downsample_backward(Tensor dy, Tensor frames, {_CLIPS}) -> Tensor", fake=_fake_backward)
def mel_downsample_backward(dy: torch.Tensor, frames: torch.Tensor, *rest: Any) -> torch.Tensor:
    """rest: as the schema's, n frames. d frames (n, width)."""
    return _backend(rest[-1])[1](dy, frames, *rest[:-1])


class MelDownsample(torch.autograd.Function):
    """Rows of frames, by the backend "triton" or "cpp"."""

    @staticmethod
    def forward(
        ctx: Any,
        frames: torch.Tensor,
        clips: torch.Tensor,
        cu_rows: torch.Tensor,
        factor: int,
        mode: str,
        n_rows: int,
        window: int,
        lead: int,
        edge: str,
        backend: str,
    ) -> torch.Tensor:
        # Only max looks at the frames again.
        ctx.save_for_backward(frames if mode == "max" else frames.new_empty(0), clips, cu_rows)
        ctx.groups, ctx.n_frames, ctx.window = (factor, mode), frames.shape[0], (window, lead, edge, backend)
        return mel_downsample_forward(
            frames, clips, cu_rows, factor, mode, n_rows, window, lead, edge, backend
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_frames = mel_downsample_backward(
            grads[0], *ctx.saved_tensors, *ctx.groups, ctx.n_frames, *ctx.window
        )
        return d_frames, *[None] * 9


def _triton(*arguments: Any) -> torch.Tensor:
    return MelDownsample.apply(*arguments, "triton")  # pyright: ignore[reportReturnType]


def _cpp(*arguments: Any) -> torch.Tensor:
    return MelDownsample.apply(*arguments, "cpp")  # pyright: ignore[reportReturnType]


registry.register(
    "mel_downsample", "triton", _triton,
    supports=lambda frames, *_: triton_support.reason_against(frames), available=triton_support.available,
)  # fmt: skip
registry.register("mel_downsample", "cpp", _cpp, supports=cpp.downsample_supports, available=cpp.available)
registry.register("mel_downsample", "reference", mel_reference.downsample)
