"""The row-wise ops by Triton and C++: operators, and the autograd functions that join forward and backward.

A kernel's backward has no derivative of its own: asking for one raises instead of giving zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from muomni_kernels import cpp_rows
from muomni_kernels.library import operator

Tensors = tuple[torch.Tensor, ...]


def _like(x: torch.Tensor) -> torch.Tensor:
    """Contiguous and empty, of x's shape."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _norm(backend: str) -> Any:
    """(forward, backward) of a backend; so are the next three."""
    if backend == "cpp":
        return cpp_rows.norm, cpp_rows.norm_backward
    from muomni_kernels import triton_rms_norm

    return triton_rms_norm.forward, triton_rms_norm.backward


def _rotate(backend: str) -> Any:
    if backend == "cpp":
        return cpp_rows.rotate
    from muomni_kernels import triton_rope

    return triton_rope.rotate


def _qk_norm_rope(backend: str) -> Any:
    if backend == "cpp":
        return cpp_rows.qk_norm_rope, cpp_rows.qk_norm_rope_backward
    from muomni_kernels import triton_qk_norm_rope

    return triton_qk_norm_rope.forward, triton_qk_norm_rope.backward


def _swiglu(backend: str) -> Any:
    if backend == "cpp":
        return cpp_rows.swiglu, cpp_rows.swiglu_backward
    from muomni_kernels import triton_swiglu

    return triton_swiglu.forward, triton_swiglu.backward


def _fake_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, backend: str) -> Tensors:
    return _like(x), x.new_empty(x.numel() // max(1, x.shape[-1]), dtype=torch.float32)


@operator(
    "rms_norm_forward(Tensor x, Tensor weight, float eps, str backend) -> (Tensor, Tensor)",
    fake=_fake_norm,
    opaque=True,
)
def rms_norm_forward(x: torch.Tensor, weight: torch.Tensor, eps: float, backend: str) -> Tensors:
    """y like x, rstd (rows,) fp32."""
    y, _, rstd = _norm(backend)[0](x, None, weight, eps)
    return y, rstd


def _fake_add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, backend: str
) -> Tensors:
    y, rstd = _fake_norm(x, weight, eps, backend)
    return y, _like(residual), rstd


@operator(
    "add_rms_norm_forward(Tensor x, Tensor residual, Tensor weight, float eps, str backend) -> "
    "(Tensor, Tensor, Tensor)",
    fake=_fake_add_norm,
    opaque=True,
)
def add_rms_norm_forward(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """y like x, the new residual like residual, rstd (rows,) fp32."""
    return _norm(backend)[0](x, residual, weight, eps)


def _fake_norm_backward(
    dy: torch.Tensor,
    d_residual: torch.Tensor | None,
    s: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    backend: str,
) -> Tensors:
    return _like(s), _like(weight)


@operator(
    "rms_norm_backward(Tensor dy, Tensor? d_residual, Tensor s, Tensor weight, Tensor rstd, str backend) -> "
    "(Tensor, Tensor)",
    fake=_fake_norm_backward,
    opaque=True,
)
def rms_norm_backward(
    dy: torch.Tensor,
    d_residual: torch.Tensor | None,
    s: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    backend: str,
) -> Tensors:
    """ds like s, dw like weight."""
    return _norm(backend)[1](dy, d_residual, s, weight, rstd)


def _fake_rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool, backend: str
) -> torch.Tensor:
    return _like(x)


@operator(
    "rope_rotate(Tensor x, Tensor cos, Tensor sin, bool inverse, str backend) -> Tensor",
    fake=_fake_rotate,
    opaque=True,
)
def rope_rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool, backend: str
) -> torch.Tensor:
    """x (..., T, H, D) turned by each token's angles, or back."""
    return _rotate(backend)(x, cos, sin, inverse=inverse)


def _fake_qkv(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    n_heads: int,
    n_kv_heads: int,
    eps: float,
    backend: str,
) -> Tensors:
    heads = (n_heads, n_kv_heads, n_kv_heads)
    return tuple(qkv.new_empty(qkv.shape[0], n, q_weight.shape[0]) for n in heads)


@operator(
    "qk_norm_rope_forward(Tensor qkv, Tensor q_weight, Tensor k_weight, Tensor? cos, Tensor? sin, int n_heads, "
    "int n_kv_heads, float eps, str backend) -> (Tensor, Tensor, Tensor)",
    fake=_fake_qkv,
    opaque=True,
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
    backend: str,
) -> Tensors:
    """q (T, H, D), k and v (T, Hkv, D)."""
    return _qk_norm_rope(backend)[0](qkv, q_weight, k_weight, cos, sin, n_heads, n_kv_heads, eps)


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
    backend: str,
) -> Tensors:
    return _like(qkv), qkv.new_empty(2, q_weight.shape[0], dtype=torch.float32)


@operator(
    "qk_norm_rope_backward(Tensor dq, Tensor dk, Tensor dv, Tensor qkv, Tensor q_weight, Tensor k_weight, "
    "Tensor? cos, Tensor? sin, float eps, str backend) -> (Tensor, Tensor)",
    fake=_fake_qkv_backward,
    opaque=True,
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
    backend: str,
) -> Tensors:
    """dqkv like qkv; dw of q and of k, (2, D) fp32."""
    return _qk_norm_rope(backend)[1](dq, dk, dv, qkv, q_weight, k_weight, cos, sin, eps)


def _fake_swiglu(gate_up: torch.Tensor, backend: str) -> torch.Tensor:
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@operator("swiglu_forward(Tensor gate_up, str backend) -> Tensor", fake=_fake_swiglu, opaque=True)
def swiglu_forward(gate_up: torch.Tensor, backend: str) -> torch.Tensor:
    """(..., 2F) -> (..., F)."""
    return _swiglu(backend)[0](gate_up)


def _fake_swiglu_backward(dy: torch.Tensor, gate_up: torch.Tensor, backend: str) -> torch.Tensor:
    return _like(gate_up)


@operator(
    "swiglu_backward(Tensor dy, Tensor gate_up, str backend) -> Tensor",
    fake=_fake_swiglu_backward,
    opaque=True,
)
def swiglu_backward(dy: torch.Tensor, gate_up: torch.Tensor, backend: str) -> torch.Tensor:
    """d gate_up like gate_up."""
    return _swiglu(backend)[1](dy, gate_up)


class RMSNorm(torch.autograd.Function):
    """y of x and weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, backend: str) -> torch.Tensor:
        y, rstd = rms_norm_forward(x, weight, eps, backend)
        ctx.save_for_backward(x, weight, rstd)
        ctx.backend = backend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        ds, dw = rms_norm_backward(grads[0], None, *ctx.saved_tensors, ctx.backend)
        return ds, dw, None, None


class AddRMSNorm(torch.autograd.Function):
    """y and the new residual of x, residual and weight."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, backend: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y, s, rstd = add_rms_norm_forward(x, residual, weight, eps, backend)
        ctx.save_for_backward(s, weight, rstd)
        ctx.dtype, ctx.backend = x.dtype, backend
        # The last norm's new residual goes nowhere: its gradient is None, not a tensor of zeros to read.
        ctx.set_materialize_grads(False)
        return y, s

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *grads: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, None, None]:
        dy, d_residual = grads
        s, weight, rstd = ctx.saved_tensors
        if dy is None:
            dw = None
            ds = d_residual
        else:
            ds, dw = rms_norm_backward(dy, d_residual, s, weight, rstd, ctx.backend)
        return None if ds is None else ds.to(ctx.dtype), ds, dw, None, None


class Rope(torch.autograd.Function):
    """x turned by each token's angles."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backend: str
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.backend = backend
        return rope_rotate(x, cos, sin, False, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return rope_rotate(grads[0], *ctx.saved_tensors, True, ctx.backend), None, None, None


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
        backend: str,
    ) -> Tensors:
        ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin)
        ctx.eps, ctx.backend = eps, backend
        return qk_norm_rope_forward(qkv, q_weight, k_weight, cos, sin, n_heads, n_kv_heads, eps, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Read once: activation checkpointing recomputes them and lets them go.
        saved = ctx.saved_tensors
        dqkv, dw = qk_norm_rope_backward(*grads, *saved, ctx.eps, ctx.backend)
        _, q_weight, k_weight, *_ = saved
        return dqkv, dw[0].to(q_weight.dtype), dw[1].to(k_weight.dtype), *[None] * 6


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor, backend: str) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        ctx.backend = backend
        return swiglu_forward(gate_up, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return swiglu_backward(grads[0], *ctx.saved_tensors, ctx.backend), None
