"""The public row-wise ops: RMSNorm, rotary embedding, SwiGLU and their fusions. Checks, documentation, dispatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from muomni_kernels import checks, cpp, cpp_rows, reference, registry, rowwise, triton_support


def _check_eps(eps: float) -> None:
    if not eps >= 0.0:
        raise ValueError(f"eps: expected a number of at least 0, got {eps}.")


def _check_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    if weight.ndim != 1 or x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"weight: expected ({x.shape[-1] if x.ndim else '?'},) for x {tuple(x.shape)}, got {tuple(weight.shape)}."
        )
    checks.floating("x", x)
    checks.floating("weight", weight)
    _check_eps(eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    x:      (..., N), any float dtype, any strides; not modified.
    weight: (N,).
    Accumulated in fp32 (fp64 stays fp64). Returns x's shape and dtype. Differentiable in x and weight.
    Raises ValueError for other widths, dtypes or devices. Source: Zhang and Sennrich, 2019.
    """
    _check_norm(x, weight, eps)
    checks.one_device("x", x, weight=weight)
    return registry.select("rms_norm", x, weight, eps)(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """The step between two branches of a pre-norm block: s = residual + x, y = rms_norm(s).

    x:        (..., N) a branch's output.
    residual: of x's shape; may be of a wider dtype, as the residual stream is under autocast. Neither is modified.
    weight:   (N,).
    Returns y in x's dtype and s in residual's; s is rounded before it is normalised. Differentiable in all
    three; the gradient of s is folded into one pass over dx. Raises ValueError for other shapes, dtypes or
    devices.
    """
    _check_norm(x, weight, eps)
    if residual.shape != x.shape:
        raise ValueError(f"residual: expected x's shape {tuple(x.shape)}, got {tuple(residual.shape)}.")
    checks.floating("residual", residual)
    checks.one_device("x", x, residual=residual, weight=weight)
    residual = checks.apart(x, residual)
    return registry.select("add_rms_norm", x, residual, weight, eps)(x, residual, weight, eps)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding with per-token angles, so 1-D RoPE, TM-RoPE and packed positions are one op.

    x:        (..., T, H, D); features i and i + R/2 of the first R form a pair, the rest passes through.
    cos, sin: (..., T, R/2) fp32, R <= D; constants, no gradient reaches them.
    Returns x's shape and dtype. The backward is the rotation by the opposite angle.
    Raises ValueError when shapes, dtypes or devices do not fit. Source: Su et al., 2021.
    """
    if (
        cos.shape != sin.shape
        or x.ndim < 3
        or cos.shape[:-1] != x.shape[:-2]
        or 2 * cos.shape[-1] > x.shape[-1]
    ):
        raise ValueError(
            f"cos, sin: expected (..., T, R/2) with R <= {x.shape[-1] if x.ndim else '?'} for x (..., T, H, D) "
            f"{tuple(x.shape)}, got {tuple(cos.shape)} and {tuple(sin.shape)}."
        )
    checks.floating("x", x)
    checks.floating("cos", cos)
    checks.floating("sin", sin)
    checks.one_device("x", x, cos=cos, sin=sin)
    return registry.select("rope", x, cos, sin)(x, cos, sin)


def qk_norm_rope(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    *,
    n_heads: int,
    n_kv_heads: int,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed projections -> q and k normalised per head and rotated, and v.

    qkv:                (T, (n_heads + 2 n_kv_heads) * D), heads of q, then of k, then of v; D even.
    q_weight, k_weight: (D,) of the RMSNorm of each head of q and of k.
    cos, sin:           (T, D/2) fp32 angles of each token, whatever made them (1-D, TM-RoPE, packed positions);
                        constants. None for no rotation.
    Returns q (T, n_heads, D), k and v (T, n_kv_heads, D), of qkv's dtype; backends may return views of qkv.
    Differentiable in qkv and the weights. Raises ValueError for other shapes, dtypes or devices.
    Sources: Henry et al., 2020 (QK-norm); Su et al., 2021.
    """
    head_dim = q_weight.shape[0] if q_weight.ndim == 1 else 0
    if head_dim < 2 or head_dim % 2 or k_weight.shape != q_weight.shape:
        raise ValueError(
            f"q_weight, k_weight: expected twice (D,) with an even D, got {tuple(q_weight.shape)} and "
            f"{tuple(k_weight.shape)}."
        )
    if n_heads < 1 or n_kv_heads < 1 or n_heads % n_kv_heads:
        raise ValueError(f"n_kv_heads: expected a number that divides n_heads {n_heads}, got {n_kv_heads}.")
    if qkv.ndim != 2 or qkv.shape[1] != (n_heads + 2 * n_kv_heads) * head_dim:
        raise ValueError(
            f"qkv: expected (T, ({n_heads} + 2 * {n_kv_heads}) * {head_dim}), got {tuple(qkv.shape)}."
        )
    if (cos is None) != (sin is None):
        raise ValueError("cos, sin: expected both or neither, got one.")
    for name, table in (("cos", cos), ("sin", sin)):
        if table is not None and table.shape != (qkv.shape[0], head_dim // 2):
            raise ValueError(
                f"{name}: expected ({qkv.shape[0]}, {head_dim // 2}), one angle a pair of features, got "
                f"{tuple(table.shape)}."
            )
        if table is not None:
            checks.floating(name, table)
    checks.floating("qkv", qkv)
    checks.floating("q_weight", q_weight)
    checks.floating("k_weight", k_weight)
    checks.one_device("qkv", qkv, q_weight=q_weight, k_weight=k_weight, cos=cos, sin=sin)
    _check_eps(eps)
    k_weight = checks.apart(q_weight, k_weight)
    arguments = (qkv, q_weight, k_weight, cos, sin, n_heads, n_kv_heads, eps)
    return registry.select("qk_norm_rope", *arguments)(*arguments)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """y = silu(gate) * up, with gate the first and up the second half of the last dimension.

    gate_up: (..., 2F). Returns (..., F) of the same dtype; computed in fp32.
    Raises ValueError for an odd last dimension or another dtype. Source: Shazeer, 2020.
    """
    if gate_up.ndim < 1 or gate_up.shape[-1] % 2:
        raise ValueError(
            f"gate_up: expected (..., 2F) with an even last dimension, got {tuple(gate_up.shape)}."
        )
    checks.floating("gate_up", gate_up)
    return registry.select("swiglu", gate_up)(gate_up)


def _triton_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> str | None:
    return triton_support.reason_against(x, weight)


def _cpp_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> str | None:
    return cpp_rows.reason_against(x, weight)


def _triton_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> str | None:
    return triton_support.reason_against(residual) or triton_support.reason_against(x, weight)


def _cpp_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> str | None:
    return cpp_rows.reason_against(x, residual, weight)


def _reason_against_angles(cos: torch.Tensor | None, sin: torch.Tensor | None) -> str | None:
    if cos is None or sin is None or cos.dtype == sin.dtype == torch.float32:
        return None
    return f"needs float32 cos and sin, got {cos.dtype} and {sin.dtype}"


def _triton_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> str | None:
    return _reason_against_angles(cos, sin) or triton_support.reason_against(x, cos, sin)


def _cpp_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> str | None:
    return _reason_against_angles(cos, sin) or cpp_rows.reason_against(x)


def _triton_qk_norm_rope(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> str | None:
    return _reason_against_angles(cos, sin) or triton_support.reason_against(qkv, q_weight, k_weight)


def _cpp_qk_norm_rope(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> str | None:
    return _reason_against_angles(cos, sin) or cpp_rows.reason_against(qkv, q_weight, k_weight)


def _runner(function: type[torch.autograd.Function], backend: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        return function.apply(*arguments, backend)

    return run


for _op, _function, _triton, _cpp, _plain in (
    ("rms_norm", rowwise.RMSNorm, _triton_rms_norm, _cpp_rms_norm, reference.rms_norm),
    ("add_rms_norm", rowwise.AddRMSNorm, _triton_add_rms_norm, _cpp_add_rms_norm, reference.add_rms_norm),
    ("rope", rowwise.Rope, _triton_rope, _cpp_rope, reference.rope),
    ("qk_norm_rope", rowwise.QKNormRope, _triton_qk_norm_rope, _cpp_qk_norm_rope, reference.qk_norm_rope),
    ("swiglu", rowwise.SwiGLU, triton_support.reason_against, cpp_rows.reason_against, reference.swiglu),
):
    registry.register(
        _op, "triton", _runner(_function, "triton"), supports=_triton, available=triton_support.available
    )
    registry.register(_op, "cpp", _runner(_function, "cpp"), supports=_cpp, available=cpp.available)
    registry.register(_op, "reference", _plain)
