"""Rotary embedding in Triton with per-token cos and sin; the backward is the conjugate rotation.

Pairs are (i, i + R/2) of the first R features; the rest is copied. fp32 inside. Nothing is saved but
cos and sin. Bytes per element (bf16): 4 forward, 4 backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from muomni_kernels.triton_support import ceil_div, launch, next_power_of_two, rows_per_tile


@triton.jit
def rope_kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr, n_rows, n_heads,
    D: tl.constexpr, HALF: tl.constexpr, SIGN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """One tile of ROWS (token, head) rows per program."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = (rows < n_rows)[:, None] & (cols < HALF)[None, :]
    angle_at = (rows // n_heads)[:, None] * HALF + cols[None, :]
    c = tl.load(cos_ptr + angle_at, mask=inside, other=1.0)
    s = tl.load(sin_ptr + angle_at, mask=inside, other=0.0) * SIGN
    at = rows[:, None] * D + cols[None, :]
    a = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + at + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, (a * c - b * s).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + at + HALF, (b * c + a * s).to(y_ptr.dtype.element_ty), mask=inside)
    if 2 * HALF < D:
        tail = 2 * HALF + tl.arange(0, REST)
        kept = (rows < n_rows)[:, None] & (tail < D)[None, :]
        tail_at = rows[:, None] * D + tail[None, :]
        tl.store(y_ptr + tail_at, tl.load(x_ptr + tail_at, mask=kept, other=0.0), mask=kept)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
    """x (..., T, H, D) with cos and sin (..., T, R/2) fp32 -> like x; inverse turns back."""
    *_, n_heads, d = x.shape
    half = cos.shape[-1]
    x = x.contiguous()
    y = torch.empty_like(x)
    if y.numel():
        rows, n_rows = rows_per_tile(half), x.numel() // d
        launch(
            rope_kernel, (ceil_div(n_rows, rows),), x, cos.contiguous(), sin.contiguous(), y, n_rows, n_heads,
            D=d, HALF=half, SIGN=-1.0 if inverse else 1.0, ROWS=rows, BLOCK=next_power_of_two(half),
            REST=next_power_of_two(max(1, d - 2 * half)),
        )  # fmt: skip
    return y
