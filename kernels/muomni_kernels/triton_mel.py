"""Mel-frame downsampling in Triton: every FACTOR frames of a clip become one row, clips of any length in one launch.

stack puts a group's frames side by side, zeros behind a short last group; mean and max take those there are. A
program finds the clip of each of its rows by bisection in cu_rows, so the host never reads an offset. Backward: each
frame belongs to one row, so nothing is added up; max looks at the frames again and gives to the first that holds it.
Bytes per element of frames (bf16): stack 4 both ways; mean and max 2 and 2/FACTOR forward, as much and 2 backward.
"""

# Triton's language has no types a checker could follow into helpers.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from muomni_kernels.triton_support import ceil_div, launch, next_power_of_two

MODES = ("stack", "mean", "max")
REGISTERS = 96
"""Most registers of a thread: left alone, ptxas spills to fit one more block on a multiprocessor."""


@triton.jit
def _groups(cu_frames_ptr, cu_rows_ptr, rows, n_frames, n_rows, n_clips, n_steps, FACTOR: tl.constexpr):
    """First frame of each row and the end of its clip, inside the frames; an empty range for a row of no clip."""
    low = tl.zeros_like(rows)
    high = low + n_clips
    # The last clip that starts at or before the row; offsets that repeat belong to empty clips.
    for _ in range(n_steps):
        middle = (low + high + 1) // 2
        before = tl.load(cu_rows_ptr + middle) <= rows
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle - 1)
    there = (low < n_clips) & (rows < n_rows)
    first = tl.load(cu_frames_ptr + low, mask=there, other=0).to(tl.int64)
    end = tl.load(cu_frames_ptr + low + 1, mask=there, other=0).to(tl.int64)
    skipped = (rows - tl.load(cu_rows_ptr + low, mask=there, other=0)).to(tl.int64) * FACTOR
    first = first + skipped
    # Offsets on a GPU are not checked: whatever they say, nothing outside the frames is touched.
    sound = there & (first >= 0)
    return tl.where(sound, first, 0), tl.where(sound, tl.minimum(end, n_frames), 0)


@triton.jit
def mel_downsample_forward_kernel(
    frames_ptr, cu_frames_ptr, cu_rows_ptr, out_ptr, n_frames, n_rows, n_clips, n_steps,
    WIDTH: tl.constexpr, FACTOR: tl.constexpr, MODE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows by BLOCK columns per program. MODE: index into MODES."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = (rows < n_rows)[:, None] & (cols < WIDTH)[None, :]
    first, end = _groups(cu_frames_ptr, cu_rows_ptr, rows, n_frames, n_rows, n_clips, n_steps, FACTOR)
    wide = rows.to(tl.int64)[:, None]
    value = tl.full([ROWS, BLOCK], float("-inf") if MODE == 2 else 0.0, dtype=tl.float32)
    for j in range(FACTOR):
        inside = ((first + j) < end)[:, None] & (cols < WIDTH)[None, :]
        x = tl.load(frames_ptr + (first + j)[:, None] * WIDTH + cols[None, :], mask=inside, other=0.0)
        if MODE == 0:
            tl.store(out_ptr + (wide * FACTOR + j) * WIDTH + cols[None, :], x, mask=own)
        elif MODE == 1:
            value += x.to(tl.float32)
        else:
            x = tl.where(inside, x.to(tl.float32), float("-inf"))
            value = tl.maximum(value, x, propagate_nan=tl.PropagateNan.ALL)
    if MODE > 0:
        if MODE == 1:
            value /= tl.maximum(tl.minimum(end - first, FACTOR), 1).to(tl.float32)[:, None]
        value = tl.where((end > first)[:, None], value, 0.0)
        tl.store(out_ptr + wide * WIDTH + cols[None, :], value.to(out_ptr.dtype.element_ty), mask=own)


@triton.jit
def mel_downsample_backward_kernel(
    dy_ptr, frames_ptr, cu_frames_ptr, cu_rows_ptr, d_frames_ptr, n_frames, n_rows, n_clips, n_steps,
    WIDTH: tl.constexpr, FACTOR: tl.constexpr, MODE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows of dy by BLOCK columns per program; writes the frames of these rows."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first, end = _groups(cu_frames_ptr, cu_rows_ptr, rows, n_frames, n_rows, n_clips, n_steps, FACTOR)
    there = (end > first)[:, None] & (cols < WIDTH)[None, :]
    wide = rows.to(tl.int64)[:, None]
    if MODE > 0:
        dy = tl.load(dy_ptr + wide * WIDTH + cols[None, :], mask=there, other=0.0).to(tl.float32)
    if MODE == 1:
        dy /= tl.maximum(tl.minimum(end - first, FACTOR), 1).to(tl.float32)[:, None]
    if MODE == 2:
        best = tl.full([ROWS, BLOCK], float("-inf"), dtype=tl.float32)
        holder = tl.zeros([ROWS, BLOCK], dtype=tl.int32)
        for j in range(FACTOR):
            inside = ((first + j) < end)[:, None] & (cols < WIDTH)[None, :]
            at = (first + j)[:, None] * WIDTH + cols[None, :]
            x = tl.load(frames_ptr + at, mask=inside, other=float("-inf")).to(tl.float32)
            # Only a larger one takes over, and the first NaN, as in PyTorch.
            takes = (x > best) | ((x != x) & (best == best))
            best = tl.where(takes, x, best)
            holder = tl.where(takes, j, holder)
    for j in range(FACTOR):
        inside = ((first + j) < end)[:, None] & (cols < WIDTH)[None, :]
        if MODE == 0:
            d = tl.load(dy_ptr + (wide * FACTOR + j) * WIDTH + cols[None, :], mask=inside, other=0.0)
        elif MODE == 1:
            d = dy
        else:
            d = tl.where(holder == j, dy, 0.0)
        at = (first + j)[:, None] * WIDTH + cols[None, :]
        tl.store(d_frames_ptr + at, d.to(d_frames_ptr.dtype.element_ty), mask=inside)


def _launch(
    kernel: object,
    tensors: tuple[torch.Tensor, ...],
    n_frames: int,
    n_rows: int,
    n_clips: int,
    width: int,
    factor: int,
    mode: str,
) -> None:
    block = min(128, next_power_of_two(width))
    rows = max(1, 1024 // block)
    launch(
        kernel, (ceil_div(n_rows, rows), ceil_div(width, block)), *tensors, n_frames, n_rows, n_clips,
        n_clips.bit_length(),
        WIDTH=width, FACTOR=factor, MODE=MODES.index(mode), ROWS=rows, BLOCK=block, maxnreg=REGISTERS,
    )  # fmt: skip


def forward(
    frames: torch.Tensor, cu_frames: torch.Tensor, cu_rows: torch.Tensor, factor: int, mode: str, n_rows: int
) -> torch.Tensor:
    """frames (n, width), offsets (clips + 1,) on its device -> (n_rows, width or factor * width)."""
    width = frames.shape[1]
    out = frames.new_empty(n_rows, width * (factor if mode == "stack" else 1))
    if out.numel():
        tensors = (frames.contiguous(), cu_frames, cu_rows, out)
        _launch(
            mel_downsample_forward_kernel,
            tensors,
            len(frames),
            n_rows,
            len(cu_frames) - 1,
            width,
            factor,
            mode,
        )
    return out


def backward(
    dy: torch.Tensor,
    frames: torch.Tensor,
    cu_frames: torch.Tensor,
    cu_rows: torch.Tensor,
    factor: int,
    mode: str,
    n_frames: int,
) -> torch.Tensor:
    """d frames (n_frames, width), zero for frames of no clip or of no row; only max reads frames."""
    width = dy.shape[1] // (factor if mode == "stack" else 1)
    d_frames = dy.new_zeros(n_frames, width)
    if dy.numel() and d_frames.numel():
        tensors = (dy.contiguous(), frames.contiguous(), cu_frames, cu_rows, d_frames)
        _launch(
            mel_downsample_backward_kernel,
            tensors,
            n_frames,
            len(dy),
            len(cu_frames) - 1,
            width,
            factor,
            mode,
        )
    return d_frames
