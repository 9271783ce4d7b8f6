"""The C++ backend of the row-wise ops, on a CPU: contiguous features, any stride between rows, float32 or bfloat16.

Computed in fp32 and rounded once. Rows are independent and weights' gradients are added up in blocks of rows, so that
results do not depend on the number of threads; they may differ in the last bits between instruction sets.
"""

from __future__ import annotations

import os

import torch

from muomni_kernels import cpp

Tensors = tuple[torch.Tensor, ...]
DTYPES = (torch.float32, torch.bfloat16)


def reason_against(x: torch.Tensor, *others: torch.Tensor | None) -> str | None:
    """None when this backend can run an op on these tensors, None for those that are missing; else the reason."""
    if x.device.type != "cpu":
        return f"needs a CPU tensor, got {x.device.type}"
    for tensor in (x, *others):
        if tensor is not None and tensor.dtype not in DTYPES:
            return f"needs float32 or bfloat16, got {tensor.dtype}"
    return cpp.available()


def _simd() -> str:
    return os.environ.get(cpp.SIMD_ENVIRONMENT, "")


def _half(x: torch.Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """x, or a copy of it, as rows of contiguous features, and how far apart they are."""
    if x.is_contiguous():
        return x, x.shape[-1]
    if x.ndim == 2 and x.stride(1) == 1:
        return x, x.stride(0)
    return x.contiguous(), x.shape[-1]


def _heads(x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
    """x (..., T, H, D), or a copy of it, and (address, stride of tokens, stride of heads, H)."""
    if x.ndim != 3 or x.stride(2) != 1:
        x = x.contiguous()
    return x, (x.data_ptr(), x.stride(-3), x.stride(-2), x.shape[-2])


def _full(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().contiguous()


def _address(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """y like x, the new residual like residual or None, rstd (rows,) fp32; x (..., N)."""
    width = x.shape[-1]
    n_rows = x.numel() // max(1, width)
    (x, x_stride), weight = _rows(x), _full(weight)
    s, residual_stride = None, 0
    if residual is not None:
        residual, residual_stride = _rows(residual)
        s = torch.empty(residual.shape, dtype=residual.dtype)
    y, rstd = torch.empty(x.shape, dtype=x.dtype), torch.empty(n_rows)
    cpp.extension().norm(
        x.data_ptr(), x_stride, _address(residual), residual_stride, weight.data_ptr(), y.data_ptr(), _address(s),
        rstd.data_ptr(), n_rows, width, eps, _half(x), _half(x if s is None else s), torch.get_num_threads(), _simd(),
    )  # fmt: skip
    return y, s, rstd


def norm_backward(
    dy: torch.Tensor,
    d_residual: torch.Tensor | None,
    s: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
) -> Tensors:
    """ds like s, dw like weight; dy of any of the dtypes, d_residual of s's."""
    width, full = s.shape[-1], _full(weight)
    (dy, dy_stride), (s, s_stride), d_stride = _rows(dy), _rows(s), 0
    if d_residual is not None:
        d_residual, d_stride = _rows(d_residual)
    ds, dw, rstd = torch.empty(s.shape, dtype=s.dtype), torch.empty(width), rstd.contiguous()
    cpp.extension().norm_gradient(
        dy.data_ptr(), dy_stride, _address(d_residual), d_stride, s.data_ptr(), s_stride, full.data_ptr(),
        rstd.data_ptr(), ds.data_ptr(), dw.data_ptr(), rstd.numel(), width, _half(dy), _half(s),
        torch.get_num_threads(), _simd(),
    )  # fmt: skip
    return ds, dw.to(weight.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, inverse: bool) -> torch.Tensor:
    """x (..., T, H, D) turned by each token's angles (..., T, R/2) fp32, or back."""
    y, (n_heads, head_dim) = torch.empty(x.shape, dtype=x.dtype), x.shape[-2:]
    if not y.numel():
        return y
    (x, heads), cos, sin = _heads(x), cos.contiguous(), sin.contiguous()
    cpp.extension().rope(
        heads, cos.data_ptr(), sin.data_ptr(), y.data_ptr(), y.numel() // (n_heads * head_dim), head_dim, cos.shape[-1],
        inverse, _half(x), torch.get_num_threads(), _simd(),
    )  # fmt: skip
    return y


def _qkv(
    qkv: torch.Tensor,
    heads: Tensors,
    weights: Tensors,
    angles: tuple[torch.Tensor | None, torch.Tensor | None],
    results: tuple[torch.Tensor | None, torch.Tensor | None],
    eps: float,
) -> None:
    """Both directions: results are (None, None), or dqkv and dw, which makes heads gradients."""
    rows, stride = _rows(qkv)
    kept = [_heads(x) for x in heads]
    q_weight, k_weight = (_full(w) for w in weights)
    cos, sin = (None if angle is None else angle.contiguous() for angle in angles)
    dqkv, dw = results
    cpp.extension().qk_norm_rope(
        rows.data_ptr(), stride, *(given for _, given in kept), q_weight.data_ptr(), k_weight.data_ptr(), _address(cos),
        _address(sin), _address(dqkv), _address(dw), len(rows), len(q_weight), eps, _half(rows),
        torch.get_num_threads(), _simd(),
    )  # fmt: skip


def qk_norm_rope(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> Tensors:
    """q (T, H, D), k and v (T, Hkv, D) of qkv (T, (H + 2 Hkv) D)."""
    shapes = ((qkv.shape[0], n, q_weight.shape[0]) for n in (n_heads, n_kv_heads, n_kv_heads))
    heads = tuple(torch.empty(shape, dtype=qkv.dtype) for shape in shapes)
    _qkv(qkv, heads, (q_weight, k_weight), (cos, sin), (None, None), eps)
    return heads


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
    dqkv, dw = torch.empty(qkv.shape, dtype=qkv.dtype), torch.empty(2, q_weight.shape[0])
    _qkv(qkv, (dq, dk, dv), (q_weight, k_weight), (cos, sin), (dqkv, dw), eps)
    return dqkv, dw


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2F) -> (..., F)."""
    width = gate_up.shape[-1] // 2
    y = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype)
    _swiglu(gate_up, None, y, width)
    return y


def swiglu_backward(dy: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """d gate_up like gate_up."""
    d_gate_up = torch.empty(gate_up.shape, dtype=gate_up.dtype)
    _swiglu(gate_up, dy, d_gate_up, dy.shape[-1])
    return d_gate_up


def _swiglu(gate_up: torch.Tensor, dy: torch.Tensor | None, out: torch.Tensor, width: int) -> None:
    """Both directions: with dy out is d gate_up."""
    n_rows = gate_up.numel() // max(1, 2 * width)
    (gate_up, stride), dy_stride = _rows(gate_up), 0
    if dy is not None:
        dy, dy_stride = _rows(dy)
    cpp.extension().swiglu(
        gate_up.data_ptr(), stride, _address(dy), dy_stride, out.data_ptr(), n_rows, width, _half(gate_up),
        torch.get_num_threads(), _simd(),
    )  # fmt: skip
