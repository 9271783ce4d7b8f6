"""The Triton side of the row-wise ops: operators, and the autograd functions that join forward and backward.

A kernel's backward has no derivative of its own: asking for one raises instead of giving zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from muomni_kernels.library import operator

Tensors = tuple[torch.Tensor, ...]


def _like(x: torch.Tensor) -> torch.Tensor:
    """Contiguous and empty, of x's shape."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _fake_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> Tensors:
    return _like(x), x.new_empty(x.numel() // max(1, x.shape[-1]), dtype=torch.float32)


@operator("rms_norm_forward(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)", fake=_fake_norm)
def rms_norm_forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> Tensors:
    """y like x, rstd (rows,) fp32."""
    from muomni_kernels import triton_rms_norm

    y, _, rstd = triton_rms_norm.forward(x, None, weight, eps)
    return y, rstd


def _fake_add_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> Tensors:
    y, rstd = _fake_norm(x, weight, eps)
    return y, _like(residual), rstd


@operator(
    "add_rms_norm_forward(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
    fake=_fake_add_norm,
)
def add_rms_norm_forward(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """y like x, the new residual like residual, rstd (rows,) fp32."""
    from muomni_kernels import triton_rms_norm

    return triton_rms_norm.forward(x, residual, weight, eps)


def _fake_norm_backward(
    dy: torch.Tensor,
    d_residual: torch.Tensor | None,
    s: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
) -> Tensors:
    return _like(s), _like(weight)


@operator(
    "rms_norm_backward(Tensor dy, Tensor? d_residual, Tensor s, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
    fake=_fake_norm_backward,
)
def rms_norm_backward(
    dy: torch.Tensor,
    d_residual: torch.Tensor | None,
    s: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
) -> Tensors:
    """ds like s, dw like weight."""
    from muomni_kernels import triton_rms_norm

    return triton_rms_norm.backward(dy, d_residual, s, weight, rstd)


def _fake_rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool) -> torch.Tensor:
    return _like(x)


@operator("rope_rotate(Tensor x, Tensor cos, Tensor sin, bool inverse) -> Tensor", fake=_fake_rotate)
def rope_rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool) -> torch.Tensor:
    """x (..., T, H, D) turned by each token's angles, or back."""
    from muomni_kernels import triton_rope

    return triton_rope.rotate(x, cos, sin, inverse=inverse)


def _fake_qkv(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> Tensors:
    heads = (n_heads, n_kv_heads, n_kv_heads)
    return tuple(qkv.new_empty(qkv.shape[0], n, q_weight.shape[0]) for n in heads)


@operator(
    "qk_norm_rope_forward(Tensor qkv, Tensor q_weight, Tensor k_weight, Tensor? cos, Tensor? sin, int n_heads, "
    "int n_kv_heads, float eps) -> (Tensor, Tensor, Tensor)",
    fake=_fake_qkv,
)
def qk_norm_rope_forward(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> Tensors:
    """q (T, H, D), k and v (T, Hkv, D)."""
    from muomni_kernels import triton_qk_norm_rope

    return triton_qk_norm_rope.forward(qkv, q_weight, k_weight, cos, sin, n_heads, n_kv_heads, eps)


def _fake_qkv_backward(
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    eps: float,
) -> Tensors:
    return _like(qkv), qkv.new_empty(2, q_weight.shape[0], dtype=torch.float32)


@operator(
    "qk_norm_rope_backward(Tensor dq, Tensor dk, Tensor dv, Tensor qkv, Tensor q_weight, Tensor k_weight, "
    "Tensor? cos, Tensor? sin, float eps) -> (Tensor, Tensor)",
    fake=_fake_qkv_backward,
)
def qk_norm_rope_backward(
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    eps: float,
) -> Tensors:
    """dqkv like qkv; dw of q and of k, (2, D) fp32."""
    from muomni_kernels import triton_qk_norm_rope

    return triton_qk_norm_rope.backward(dq, dk, dv, qkv, q_weight, k_weight, cos, sin, eps)


def _fake_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@operator("swiglu_forward(Tensor gate_up) -> Tensor", fake=_fake_swiglu)
def swiglu_forward(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2F) -> (..., F)."""
    from muomni_kernels import triton_swiglu

    return triton_swiglu.forward(gate_up)


def _fake_swiglu_backward(dy: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    return _like(gate_up)


@operator("swiglu_backward(Tensor dy, Tensor gate_up) -> Tensor", fake=_fake_swiglu_backward)
def swiglu_backward(dy: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """d gate_up like gate_up."""
    from muomni_kernels import triton_swiglu

    return triton_swiglu.backward(dy, gate_up)


class RMSNorm(torch.autograd.Function):
    """y of x and weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        y, rstd = rms_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        ds, dw = rms_norm_backward(grads[0], None, *ctx.saved_tensors)
        return ds, dw, None


class AddRMSNorm(torch.autograd.Function):
    """y and the new residual of x, residual and weight."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y, s, rstd = add_rms_norm_forward(x, residual, weight, eps)
        ctx.save_for_backward(s, weight, rstd)
        ctx.dtype = x.dtype
        # The last norm's new residual goes nowhere: its gradient is None, not a tensor of zeros to read.
        ctx.set_materialize_grads(False)
        return y, s

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *grads: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, None]:
        dy, d_residual = grads
        s, weight, rstd = ctx.saved_tensors
        if dy is None:
            dw = None
            ds = d_residual
        else:
            ds, dw = rms_norm_backward(dy, d_residual, s, weight, rstd)
        return None if ds is None else ds.to(ctx.dtype), ds, dw, None


class Rope(torch.autograd.Function):
    """x turned by each token's angles."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return rope_rotate(x, cos, sin, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return rope_rotate(grads[0], *ctx.saved_tensors, True), None, None


class QKNormRope(torch.autograd.Function):
    """q, k, v of packed qkv."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: torch.Tensor,
        q_weight: torch.Tensor,
        k_weight: torch.Tensor,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        n_heads: int,
        n_kv_heads: int,
        eps: float,
    ) -> Tensors:
        ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin)
        ctx.eps = eps
        return qk_norm_rope_forward(qkv, q_weight, k_weight, cos, sin, n_heads, n_kv_heads, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Read once: activation checkpointing recomputes them and lets them go.
        saved = ctx.saved_tensors
        dqkv, dw = qk_norm_rope_backward(*grads, *saved, ctx.eps)
        _, q_weight, k_weight, *_ = saved
        return dqkv, dw[0].to(q_weight.dtype), dw[1].to(k_weight.dtype), None, None, None, None, None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        return swiglu_forward(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return swiglu_backward(grads[0], *ctx.saved_tensors)
