"""The public row-wise ops: RMSNorm, rotary embedding, SwiGLU. Checks, documentation, dispatch."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from muomni_kernels import library, reference, registry, triton_support


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    x:      (..., N), any float dtype, any strides; not modified.
    weight: (N,).
    Accumulated in fp32 (fp64 stays fp64). Returns x's shape and dtype. Differentiable in x and weight.
    Raises ValueError when the widths differ. Source: Zhang and Sennrich, 2019.
    """
    if weight.ndim != 1 or x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"weight: expected ({x.shape[-1] if x.ndim else '?'},) for x {tuple(x.shape)}, got {tuple(weight.shape)}."
        )
    return registry.select("rms_norm", x, weight, eps)(x, weight, eps)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding with per-token angles, so 1-D RoPE, TM-RoPE and packed positions are one op.

    x:        (..., T, H, D); features i and i + R/2 of the first R form a pair, the rest passes through.
    cos, sin: (..., T, R/2) fp32, R <= D; constants, no gradient reaches them.
    Returns x's shape and dtype. The backward is the rotation by the opposite angle.
    Raises ValueError when the shapes do not fit. Source: Su et al., 2021.
    """
    if (
        cos.shape != sin.shape
        or x.ndim < 3
        or cos.shape[:-1] != x.shape[:-2]
        or 2 * cos.shape[-1] > x.shape[-1]
    ):
        raise ValueError(
            f"cos, sin: expected (..., T, R/2) with R <= {x.shape[-1]} for x (..., T, H, D) {tuple(x.shape)}, got "
            f"{tuple(cos.shape)} and {tuple(sin.shape)}."
        )
    return registry.select("rope", x, cos, sin)(x, cos, sin)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """y = silu(gate) * up, with gate the first and up the second half of the last dimension.

    gate_up: (..., 2F). Returns (..., F) of the same dtype; computed in fp32.
    Raises ValueError for an odd last dimension. Source: Shazeer, 2020.
    """
    if gate_up.ndim < 1 or gate_up.shape[-1] % 2:
        raise ValueError(
            f"gate_up: expected (..., 2F) with an even last dimension, got {tuple(gate_up.shape)}."
        )
    return registry.select("swiglu", gate_up)(gate_up)


# The kernels' backwards have no derivative of their own: asking for one raises instead of giving zeros.


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        call = (
            torch.ops.muomni.rms_norm_forward if torch.compiler.is_compiling() else library.rms_norm_forward
        )
        y, rstd = call(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        call = (
            torch.ops.muomni.rms_norm_backward if torch.compiler.is_compiling() else library.rms_norm_backward
        )
        dx, dw = call(grads[0], *ctx.saved_tensors)
        return dx, dw, None


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        call: Any = torch.ops.muomni.rope_rotate if torch.compiler.is_compiling() else library.rope_rotate
        return call(x, cos, sin, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        call: Any = torch.ops.muomni.rope_rotate if torch.compiler.is_compiling() else library.rope_rotate
        return call(grads[0], *ctx.saved_tensors, True), None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        call: Any = (
            torch.ops.muomni.swiglu_forward if torch.compiler.is_compiling() else library.swiglu_forward
        )
        return call(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        call: Any = (
            torch.ops.muomni.swiglu_backward if torch.compiler.is_compiling() else library.swiglu_backward
        )
        return call(grads[0], *ctx.saved_tensors)


def _anything(*_: object) -> None:
    """The reference runs wherever PyTorch does."""


def _triton_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> str | None:
    return triton_support.reason_against(x, weight)


def _triton_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> str | None:
    if cos.dtype != torch.float32 or sin.dtype != torch.float32:
        return f"needs float32 cos and sin, got {cos.dtype}"
    return triton_support.reason_against(x, cos, sin)


def _reference_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return reference.rope(x, cos.detach(), sin.detach())


for _op, _run, _supports, _plain in (
    ("rms_norm", _RMSNorm.apply, _triton_rms_norm, reference.rms_norm),
    ("rope", _Rope.apply, _triton_rope, _reference_rope),
    ("swiglu", _SwiGLU.apply, triton_support.reason_against, reference.swiglu),
):
    registry.register(_op, "triton", _run, supports=_supports, available=triton_support.available)
    registry.register(_op, "reference", _plain, supports=_anything, available=_anything)
