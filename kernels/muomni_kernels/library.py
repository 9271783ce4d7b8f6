"""The Triton ops as torch.library operators (namespace muomni), so that torch.compile and graphs see one node.

Each has a define, an implementation and a fake. On a device without Triton the implementation is the
closed form in PyTorch: it lets the operators be checked anywhere. Eager code calls the functions
directly and pays no dispatcher.
"""

from __future__ import annotations

import torch

from muomni_kernels import reference, triton_support


def rms_norm_forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """y like x, rstd (rows,) fp32."""
    if triton_support.reason_against(x) is None:
        from muomni_kernels import triton_rms_norm

        return triton_rms_norm.forward(x, weight, eps)
    rstd = torch.rsqrt(x.float().square().mean(-1) + eps).reshape(-1)
    return reference.rms_norm(x, weight, eps).contiguous(), rstd


def rms_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx like x, dw like weight."""
    if triton_support.reason_against(x) is None:
        from muomni_kernels import triton_rms_norm

        return triton_rms_norm.backward(dy, x, weight, rstd)
    h = x.float() * rstd.view(*x.shape[:-1], 1)
    g = dy.float() * weight.float()
    dx = rstd.view(*x.shape[:-1], 1) * (g - h * (g * h).mean(-1, keepdim=True))
    dw = (dy.float() * h).reshape(-1, x.shape[-1]).sum(0)
    return dx.to(x.dtype), dw.to(weight.dtype)


def rope_rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool) -> torch.Tensor:
    """x (..., T, H, D) turned by each token's angles, or back."""
    if triton_support.reason_against(x) is None:
        from muomni_kernels import triton_rope

        return triton_rope.rotate(x, cos, sin, inverse=inverse)
    return reference.rope(x, cos, -sin if inverse else sin).contiguous()


def swiglu_forward(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2F) -> (..., F)."""
    if triton_support.reason_against(gate_up) is None:
        from muomni_kernels import triton_swiglu

        return triton_swiglu.forward(gate_up)
    return reference.swiglu(gate_up).contiguous()


def swiglu_backward(dy: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """d gate_up like gate_up."""
    if triton_support.reason_against(gate_up) is None:
        from muomni_kernels import triton_swiglu

        return triton_swiglu.backward(dy, gate_up)
    g, u = gate_up.float().chunk(2, dim=-1)
    s = torch.sigmoid(g)
    dg = dy.float() * u * s * (1.0 + g * (1.0 - s))
    return torch.cat((dg, dy.float() * g * s), dim=-1).to(gate_up.dtype)


_LIBRARY = torch.library.Library("muomni", "DEF")


def _define(schema: str, implementation: object, fake: object) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, implementation, key)  # pyright: ignore[reportArgumentType]
    torch.library.register_fake(f"muomni::{name}", fake, lib=_LIBRARY)  # pyright: ignore[reportArgumentType]


def _fake_rms_norm_forward(
    x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty(
        x.numel() // x.shape[-1], dtype=torch.float32
    )


def _fake_rms_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight)


def _fake_rope_rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _fake_swiglu_forward(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


def _fake_swiglu_backward(dy: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    return torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)


_define(
    "rms_norm_forward(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    rms_norm_forward,
    _fake_rms_norm_forward,
)
_define(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
    rms_norm_backward,
    _fake_rms_norm_backward,
)
_define(
    "rope_rotate(Tensor x, Tensor cos, Tensor sin, bool inverse) -> Tensor", rope_rotate, _fake_rope_rotate
)
_define("swiglu_forward(Tensor gate_up) -> Tensor", swiglu_forward, _fake_swiglu_forward)
_define("swiglu_backward(Tensor dy, Tensor gate_up) -> Tensor", swiglu_backward, _fake_swiglu_backward)
