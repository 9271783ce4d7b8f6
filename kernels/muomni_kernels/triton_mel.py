"""Mel-frame downsampling in Triton: every FACTOR frames of a clip become one row, clips of any length in one launch.

stack puts a group's frames side by side, zeros behind a short last group; mean and max take those there are. A
program finds the clip of each of its rows by bisection in cu_rows, so the host never reads an offset. Backward: each
frame belongs to one row, so nothing is added up; max looks at the frames again and gives to the first that holds it.
A stack's window may begin LEAD frames before the group and have WINDOW frames, beyond the clip's ends zeros or its edge
frame. There each frame's gradient is gathered from the windows that show it, in fp32 and in a fixed order: no atomics.
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
def _groups(
    clips_ptr,
    cu_rows_ptr,
    rows,
    n_frames,
    n_rows,
    n_clips,
    n_steps,
    FACTOR: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """Begin of each row's clip, the row's first frame and the clip's end, inside the frames.

    An empty range for a row of no clip.
    """
    low = tl.zeros_like(rows)
    high = low + n_clips
    # The last clip that starts at or before the row; offsets that repeat belong to empty clips.
    for _ in range(n_steps):
        middle = (low + high + 1) // 2
        before = tl.load(cu_rows_ptr + middle) <= rows
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle - 1)
    there = (low < n_clips) & (rows < n_rows)
    begin = tl.load(clips_ptr + low * STRIDE, mask=there, other=0).to(tl.int64)
    end = tl.load(clips_ptr + low * STRIDE + 1, mask=there, other=0).to(tl.int64)
    skipped = (rows - tl.load(cu_rows_ptr + low, mask=there, other=0)).to(tl.int64) * FACTOR
    first = begin + skipped
    # Offsets on a GPU are not checked: whatever they say, nothing outside the frames is touched.
    sound = there & (first >= 0)
    return tl.maximum(begin, 0), tl.where(sound, first, 0), tl.where(sound, tl.minimum(end, n_frames), 0)


@triton.jit
def mel_downsample_forward_kernel(
    frames_ptr, clips_ptr, cu_rows_ptr, out_ptr, n_frames, n_rows, n_clips, n_steps,
    WIDTH: tl.constexpr, FACTOR: tl.constexpr, MODE: tl.constexpr, WINDOW: tl.constexpr, LEAD: tl.constexpr,
    REPEAT: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows by BLOCK columns per program. MODE: index into MODES; WINDOW, LEAD and REPEAT are of stack."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = (rows < n_rows)[:, None] & (cols < WIDTH)[None, :]
    begin, first, end = _groups(
        clips_ptr, cu_rows_ptr, rows, n_frames, n_rows, n_clips, n_steps, FACTOR, STRIDE
    )
    wide = rows.to(tl.int64)[:, None]
    value = tl.full([ROWS, BLOCK], float("-inf") if MODE == 2 else 0.0, dtype=tl.float32)
    for j in range(WINDOW):
        at = first + (j - LEAD)
        there = at < end
        if REPEAT:
            there = first < end
            at = tl.minimum(tl.maximum(at, begin), end - 1)
        elif LEAD > 0:
            there &= (at >= begin) & (first < end)
        inside = there[:, None] & (cols < WIDTH)[None, :]
        x = tl.load(frames_ptr + at[:, None] * WIDTH + cols[None, :], mask=inside, other=0.0)
        if MODE == 0:
            tl.store(out_ptr + (wide * WINDOW + j) * WIDTH + cols[None, :], x, mask=own)
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
    dy_ptr, frames_ptr, clips_ptr, cu_rows_ptr, d_frames_ptr, n_frames, n_rows, n_clips, n_steps,
    WIDTH: tl.constexpr, FACTOR: tl.constexpr, MODE: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows of dy by BLOCK columns per program; writes the frames of these rows."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    _, first, end = _groups(clips_ptr, cu_rows_ptr, rows, n_frames, n_rows, n_clips, n_steps, FACTOR, STRIDE)
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


@triton.jit
def mel_window_backward_kernel(
    dy_ptr, clips_ptr, cu_rows_ptr, d_frames_ptr, n_frames, n_rows, n_clips, n_steps,
    WIDTH: tl.constexpr, FACTOR: tl.constexpr, WINDOW: tl.constexpr, LEAD: tl.constexpr, REPEAT: tl.constexpr,
    STRIDE: tl.constexpr, BEYOND: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS groups of FACTOR frames by BLOCK columns per program; writes these frames.

    BEYOND: groups behind the last row of dy whose frames its window still shows.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin, first, end = _groups(
        clips_ptr, cu_rows_ptr, rows, n_frames, n_rows + BEYOND, n_clips, n_steps, FACTOR, STRIDE
    )
    held = (cols < WIDTH)[None, :]
    wide = rows.to(tl.int64)
    # What lies beyond an edge is its frame once more.
    head = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    tail = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    if REPEAT:
        is_first = (first == begin) & (first < end)
        for i in range(LEAD):
            for r in range((LEAD - 1 - i) // FACTOR + 1):
                shown = is_first & (first + r * FACTOR < end) & (wide + r < n_rows)
                at = ((wide + r) * WINDOW + i)[:, None] * WIDTH + cols[None, :]
                head += tl.load(dy_ptr + at, mask=shown[:, None] & held, other=0.0).to(tl.float32)
        is_last = (first < end) & (first + FACTOR >= end)
        for r in range((WINDOW - 2 - LEAD) // FACTOR + 1):
            for i in range(LEAD + 1 + r * FACTOR, WINDOW):
                shown = is_last & (first - r * FACTOR + (i - LEAD) >= end)
                shown &= (first - r * FACTOR >= begin) & (wide - r >= 0) & (wide - r < n_rows)
                at = ((wide - r) * WINDOW + i)[:, None] * WIDTH + cols[None, :]
                tail += tl.load(dy_ptr + at, mask=shown[:, None] & held, other=0.0).to(tl.float32)
    for j in range(FACTOR):
        inside = (first + j) < end
        d = tl.where(((first + j) == begin)[:, None], head, 0.0)
        d += tl.where(((first + j) == end - 1)[:, None], tail, 0.0)
        # The windows that show frame j are those of rows low to high from this one; + FACTOR: no negative division.
        low = 1 - (WINDOW - 1 - LEAD - j + FACTOR) // FACTOR
        high = (j + LEAD) // FACTOR
        for r in range(low, high + 1):
            shown = inside & (first + r * FACTOR >= begin) & (first + r * FACTOR < end)
            shown &= (wide + r >= 0) & (wide + r < n_rows)
            at = ((wide + r) * WINDOW + (j + LEAD - r * FACTOR))[:, None] * WIDTH + cols[None, :]
            d += tl.load(dy_ptr + at, mask=shown[:, None] & held, other=0.0).to(tl.float32)
        at = (first + j)[:, None] * WIDTH + cols[None, :]
        tl.store(d_frames_ptr + at, d.to(d_frames_ptr.dtype.element_ty), mask=inside[:, None] & held)


def _launch(
    kernel: object,
    tensors: tuple[torch.Tensor, ...],
    n_frames: int,
    n_rows: int,
    *,
    beyond: int = 0,
    width: int,
    **constants: int,
) -> None:
    """tensors: those of the kernel in its order, the clips and cu_rows just before the last."""
    clips, cu_rows = tensors[-3:-1]
    n_clips = len(cu_rows) - 1
    # Begins and ends in turn where they are not shared.
    stride = 1 if len(clips) == n_clips + 1 else 2
    block = min(128, next_power_of_two(width))
    rows = max(1, 1024 // block)
    launch(
        kernel, (ceil_div(n_rows + beyond, rows), ceil_div(width, block)), *tensors, n_frames, n_rows, n_clips,
        n_clips.bit_length(), WIDTH=width, **constants, STRIDE=stride, ROWS=rows, BLOCK=block, maxnreg=REGISTERS,
    )  # fmt: skip


def forward(
    frames: torch.Tensor,
    clips: torch.Tensor,
    cu_rows: torch.Tensor,
    factor: int,
    mode: str,
    n_rows: int,
    window: int,
    lead: int,
    edge: str,
) -> torch.Tensor:
    """frames (n, width), clips and their rows on its device -> (n_rows, width or window * width)."""
    width = frames.shape[1]
    out = frames.new_empty(n_rows, width * (window if mode == "stack" else 1))
    if out.numel():
        _launch(
            mel_downsample_forward_kernel, (frames.contiguous(), clips, cu_rows, out), len(frames), n_rows, width=width,
            FACTOR=factor, MODE=MODES.index(mode), WINDOW=window, LEAD=lead, REPEAT=edge == "repeat",
        )  # fmt: skip
    return out


def backward(
    dy: torch.Tensor,
    frames: torch.Tensor,
    clips: torch.Tensor,
    cu_rows: torch.Tensor,
    factor: int,
    mode: str,
    n_frames: int,
    window: int,
    lead: int,
    edge: str,
) -> torch.Tensor:
    """d frames (n_frames, width), zero for frames of no clip or of no row; only max reads frames."""
    width = dy.shape[1] // (window if mode == "stack" else 1)
    d_frames = dy.new_zeros(n_frames, width)
    if not (dy.numel() and d_frames.numel()):
        return d_frames
    if window == factor and lead == 0 and edge == "zeros":
        _launch(
            mel_downsample_backward_kernel, (dy.contiguous(), frames.contiguous(), clips, cu_rows, d_frames), n_frames,
            len(dy), width=width, FACTOR=factor, MODE=MODES.index(mode),
        )  # fmt: skip
    else:
        beyond = (window - 1 - lead) // factor
        _launch(
            mel_window_backward_kernel, (dy.contiguous(), clips, cu_rows, d_frames), n_frames, len(dy), beyond=beyond,
            width=width, FACTOR=factor, WINDOW=window, LEAD=lead, REPEAT=edge == "repeat", BEYOND=beyond,
        )  # fmt: skip
    return d_frames
