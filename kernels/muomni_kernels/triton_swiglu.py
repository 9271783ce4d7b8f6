"""SwiGLU in Triton on packed gate_up: y = silu(gate) * up.

Saved for backward: gate_up; the sigmoid is computed again. With s = sigmoid(g): d_up = dy * g * s,
d_gate = dy * up * s * (1 + g * (1 - s)). Bytes per ff element (bf16): 6 forward, 10 backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from muomni_kernels.triton_support import ceil_div, launch, next_power_of_two


@triton.jit
def swiglu_forward_kernel(x_ptr, y_ptr, n_rows, F: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """One [ROWS, BLOCK] tile of the output per program."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < n_rows)[:, None] & (cols < F)[None, :]
    source = x_ptr + rows[:, None] * (2 * F) + cols[None, :]
    g = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(source + F, mask=inside, other=0.0).to(tl.float32)
    y = g / (1.0 + tl.exp(-g)) * u
    tl.store(y_ptr + rows[:, None] * F + cols[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(
    dy_ptr, x_ptr, dx_ptr, n_rows, F: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """One [ROWS, BLOCK] tile of dy per program; writes both halves of dx."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < n_rows)[:, None] & (cols < F)[None, :]
    at = rows[:, None] * (2 * F) + cols[None, :]
    g = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(x_ptr + at + F, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + rows[:, None] * F + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-g))
    dg = dy * u * s * (1.0 + g * (1.0 - s))
    tl.store(dx_ptr + at, dg.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dx_ptr + at + F, (dy * g * s).to(dx_ptr.dtype.element_ty), mask=inside)


def tile(f: int) -> tuple[int, int]:
    """(rows, columns) of a tile of about 1,024 elements: columns the largest power of two that divides f well."""
    columns = f & -f
    if columns < 64:
        columns = min(next_power_of_two(f), 1024)
    columns = min(columns, 1024)
    return max(1, 1024 // columns), columns


def forward(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2F) -> (..., F)."""
    f = gate_up.shape[-1] // 2
    y = gate_up.new_empty(*gate_up.shape[:-1], f)
    if y.numel():
        n_rows, (rows, columns) = y.numel() // f, tile(f)
        grid = (ceil_div(n_rows, rows), ceil_div(f, columns))
        launch(swiglu_forward_kernel, grid, gate_up.contiguous(), y, n_rows, F=f, ROWS=rows, BLOCK=columns)
    return y


def backward(dy: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """d gate_up like gate_up."""
    gate_up = gate_up.contiguous()
    dx = torch.empty_like(gate_up)
    if dy.numel():
        f = dy.shape[-1]
        n_rows, (rows, columns) = dy.numel() // f, tile(f)
        grid = (ceil_div(n_rows, rows), ceil_div(f, columns))
        launch(
            swiglu_backward_kernel, grid, dy.contiguous(), gate_up, dx, n_rows, F=f, ROWS=rows, BLOCK=columns
        )
    return dx
