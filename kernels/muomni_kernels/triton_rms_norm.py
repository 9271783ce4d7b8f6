"""RMSNorm in Triton, alone or after a residual addition: y = s * rstd * w, rstd = 1 / sqrt(mean(s^2) + eps).

s is x, or x + residual rounded to the residual's dtype. Saved for backward: s, w, rstd. With h = s * rstd and
g = dy * w: ds = rstd * (g - h * mean(g * h)), plus the gradient that reaches the new residual; dw = sum over
rows of dy * h, kept in registers by each program of a persistent grid and summed once (deterministic).
Bytes per element (bf16): 4 forward and 6 backward; with the addition 8 and 8; and the partial dw.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from muomni_kernels.triton_support import ceil_div, launch, n_programs, next_power_of_two, rows_per_tile

BACKWARD_REGISTERS = 128
"""Most registers of a thread: four blocks of four warps still fit; left alone, ptxas may spill to fit a fifth."""


@triton.jit
def rms_norm_forward_kernel(
    x_ptr, residual_ptr, w_ptr, y_ptr, s_ptr, rstd_ptr, n_rows,
    N: tl.constexpr, EPS: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One [ROWS, N] tile per program."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    inside = (rows < n_rows)[:, None] & (cols < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + cols[None, :]
    s = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        s += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rounded = s.to(s_ptr.dtype.element_ty)
        tl.store(s_ptr + at, rounded, mask=inside)
        s = rounded.to(tl.float32)
    w = tl.load(w_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(s * s, axis=1) / N + EPS)
    tl.store(rstd_ptr + rows, rstd, mask=rows < n_rows)
    tl.store(y_ptr + at, (s * rstd[:, None] * w[None, :]).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward_kernel(
    dy_ptr, d_residual_ptr, s_ptr, w_ptr, rstd_ptr, ds_ptr, partial_ptr, n_rows,
    N: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Persistent over row tiles; each program leaves one row of partial dw."""
    cols = tl.arange(0, BLOCK)
    w = tl.load(w_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
    # Summed over rows once, at the end: a reduction across warps in every tile would stall the loop.
    dw = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        inside = (rows < n_rows)[:, None] & (cols < N)[None, :]
        at = rows.to(tl.int64)[:, None] * N + cols[None, :]
        s = tl.load(s_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=rows < n_rows, other=0.0)
        h = s * rstd[:, None]
        g = dy * w[None, :]
        mean = tl.sum(g * h, axis=1) / N
        ds = rstd[:, None] * (g - h * mean[:, None])
        if ADD:
            ds += tl.load(d_residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(ds_ptr + at, ds.to(ds_ptr.dtype.element_ty), mask=inside)
        dw += dy * h
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * N + cols, tl.sum(dw, axis=0), mask=cols < N)


def forward(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """y like x, s like residual (None without one) and rstd (rows,) fp32; x, residual (..., N)."""
    n = x.shape[-1]
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    y = torch.empty_like(x)
    s = None if residual is None else torch.empty_like(residual)
    n_rows = x.numel() // max(1, n)
    rstd = x.new_empty(n_rows, dtype=torch.float32)
    if y.numel():
        rows = rows_per_tile(n)
        launch(
            rms_norm_forward_kernel, (ceil_div(n_rows, rows),),
            x, x if residual is None else residual, weight.contiguous(), y, y if s is None else s, rstd, n_rows,
            N=n, EPS=eps, ADD=residual is not None, ROWS=rows, BLOCK=next_power_of_two(n),
        )  # fmt: skip
    return y, s, rstd


def backward(
    dy: torch.Tensor,
    d_residual: torch.Tensor | None,
    s: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ds like s, d_residual added where there is one, and dw like weight."""
    n = s.shape[-1]
    s, dy = s.contiguous(), dy.contiguous()
    ds = torch.empty_like(s)
    if not ds.numel():
        return ds, torch.zeros_like(weight)
    rows, n_rows = rows_per_tile(n), rstd.shape[0]
    programs = n_programs(s, ceil_div(n_rows, rows))
    partial = s.new_empty(programs, n, dtype=torch.float32)
    launch(
        rms_norm_backward_kernel, (programs,),
        dy, dy if d_residual is None else d_residual.contiguous(), s, weight.contiguous(), rstd, ds, partial, n_rows,
        N=n, ADD=d_residual is not None, ROWS=rows, BLOCK=next_power_of_two(n), num_stages=3,
        maxnreg=BACKWARD_REGISTERS,
    )  # fmt: skip
    return ds, partial.sum(0).to(weight.dtype)
