"""RMSNorm in Triton: y = x * rstd * w, with rstd = 1 / sqrt(mean(x^2) + eps).

Saved for backward: x, w, rstd. With h = x * rstd and g = dy * w: dx = rstd * (g - h * mean(g * h)),
dw = sum over rows of dy * h, accumulated per program in fp32 and summed once (deterministic).
Bytes per element (bf16): 4 forward, 6 and the partial dw backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from muomni_kernels.triton_support import ceil_div, launch, n_programs, next_power_of_two, rows_per_tile


@triton.jit
def rms_norm_forward_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    rstd_ptr,
    n_rows,
    N: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One [ROWS, N] tile per program."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    inside = (rows < n_rows)[:, None] & (cols < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + cols[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / N + EPS)
    tl.store(rstd_ptr + rows, rstd, mask=rows < n_rows)
    tl.store(y_ptr + at, (x * rstd[:, None] * w[None, :]).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward_kernel(
    dy_ptr, x_ptr, w_ptr, rstd_ptr, dx_ptr, partial_ptr, n_rows,
    N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Persistent over row tiles; each program leaves one row of partial dw."""
    cols = tl.arange(0, BLOCK)
    w = tl.load(w_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], dtype=tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        inside = (rows < n_rows)[:, None] & (cols < N)[None, :]
        at = rows.to(tl.int64)[:, None] * N + cols[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=rows < n_rows, other=0.0)
        h = x * rstd[:, None]
        g = dy * w[None, :]
        mean = tl.sum(g * h, axis=1) / N
        dx = rstd[:, None] * (g - h * mean[:, None])
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dw += tl.sum(dy * h, axis=0)
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * N + cols, dw, mask=cols < N)


def forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """y like x and rstd (rows,) fp32; x (..., N)."""
    n = x.shape[-1]
    flat = x.contiguous().view(-1, n)
    y = torch.empty_like(flat)
    rstd = torch.empty(len(flat), dtype=torch.float32, device=x.device)
    if len(flat):
        rows = rows_per_tile(n)
        launch(
            rms_norm_forward_kernel,
            (ceil_div(len(flat), rows),),
            flat,
            weight.contiguous(),
            y,
            rstd,
            len(flat),
            N=n,
            EPS=eps,
            ROWS=rows,
            BLOCK=next_power_of_two(n),
        )
    return y.view(x.shape), rstd


def backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx like x and dw like weight."""
    n = x.shape[-1]
    flat, flat_dy = x.contiguous().view(-1, n), dy.contiguous().view(-1, n)
    dx = torch.empty_like(flat)
    if not len(flat):
        return dx.view(x.shape), torch.zeros_like(weight)
    rows = rows_per_tile(n)
    programs = n_programs(x, ceil_div(len(flat), rows))
    partial = torch.empty(programs, n, dtype=torch.float32, device=x.device)
    launch(
        rms_norm_backward_kernel,
        (programs,),
        flat_dy,
        flat,
        weight.contiguous(),
        rstd,
        dx,
        partial,
        len(flat),
        N=n,
        ROWS=rows,
        BLOCK=next_power_of_two(n),
        num_stages=3,
    )
    return dx.view(x.shape), partial.sum(0).to(weight.dtype)
