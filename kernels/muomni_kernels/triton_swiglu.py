"""SwiGLU in Triton on packed gate_up: y = silu(gate) * up.

Saved for backward: gate_up; the sigmoid is computed again. With s = sigmoid(g): d_up = dy * g * s,
d_gate = dy * up * s * (1 + g * (1 - s)). Bytes per ff element (bf16): 6 forward, 10 backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def swiglu_forward_kernel(x_ptr, y_ptr, n, F: tl.constexpr, BLOCK: tl.constexpr):
    """One block of BLOCK output elements per program."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    source = (at // F) * (2 * F) + at % F
    g = tl.load(x_ptr + source, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(x_ptr + source + F, mask=inside, other=0.0).to(tl.float32)
    y = g / (1.0 + tl.exp(-g)) * u
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(dy_ptr, x_ptr, dx_ptr, n, F: tl.constexpr, BLOCK: tl.constexpr):
    """One block of BLOCK output elements per program; writes both halves of dx."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    source = (at // F) * (2 * F) + at % F
    g = tl.load(x_ptr + source, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(x_ptr + source + F, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-g))
    dg = dy * u * s * (1.0 + g * (1.0 - s))
    tl.store(dx_ptr + source, dg.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dx_ptr + source + F, (dy * g * s).to(dx_ptr.dtype.element_ty), mask=inside)


def forward(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2F) -> (..., F)."""
    f = gate_up.shape[-1] // 2
    y = torch.empty(*gate_up.shape[:-1], f, dtype=gate_up.dtype, device=gate_up.device)
    if y.numel():
        grid = (triton.cdiv(y.numel(), BLOCK),)
        swiglu_forward_kernel[grid](gate_up.contiguous(), y, y.numel(), F=f, BLOCK=BLOCK, num_warps=4)
    return y


def backward(dy: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """d gate_up like gate_up."""
    dx = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
    if dy.numel():
        grid = (triton.cdiv(dy.numel(), BLOCK),)
        swiglu_backward_kernel[grid](
            dy.contiguous(), gate_up.contiguous(), dx, dy.numel(), F=dy.shape[-1], BLOCK=BLOCK, num_warps=4
        )
    return dx
