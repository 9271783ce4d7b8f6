"""vq_nearest: the nearest words of residual codebooks, level after level."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from muomni_kernels import checks, reference, registry, triton_support
from muomni_kernels.library import operator


def vq_nearest(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each level names the word nearest to what the levels before it left; the result is the sum of the words.

    z:         (N, D) float; not modified. Computed in fp32 (fp64 stays fp64).
    codebooks: (K, S, D) fp32 (or fp64), S at least 1.
    Returns codes (N, K) int64, of equally near words the lowest, and the sum of the words (N, D) in codebooks' dtype.
    A row that is not finite gets valid but meaningless codes.
    The sum is differentiable in codebooks (on a GPU the order of that addition is not fixed) and constant in z: the
    straight-through gradient is the model's. Raises ValueError for other shapes, dtypes or devices.
    Source: van den Oord et al., 2017; Zeghidour et al., SoundStream, 2021.
    """
    if codebooks.ndim != 3 or codebooks.shape[1] < 1:
        raise ValueError(
            f"codebooks: expected (K, S, D) with at least one word, got {tuple(codebooks.shape)}."
        )
    if z.ndim != 2 or z.shape[1] != codebooks.shape[2]:
        raise ValueError(f"z: expected (N, {codebooks.shape[2]}), got {tuple(z.shape)}.")
    checks.floating("z", z)
    if codebooks.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"codebooks: expected float32 or float64, got {codebooks.dtype}.")
    checks.one_device("z", z, codebooks=codebooks)
    return registry.select("vq_nearest", z, codebooks)(z, codebooks)


def _fake(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes = z.new_empty(z.shape[0], codebooks.shape[0], dtype=torch.int64)
    return codes, z.new_empty(z.shape, dtype=torch.float32)


@operator("vq_nearest(Tensor z, Tensor codebooks) -> (Tensor, Tensor)", fake=_fake)
def vq_nearest_forward(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """codes (N, K) int64, sum of words (N, D) fp32."""
    from muomni_kernels import triton_vq

    return triton_vq.nearest(z, codebooks)


class VQNearest(torch.autograd.Function):
    """Codes and the sum of words; the gradient of the sum goes to the chosen words."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, total = vq_nearest_forward(z, codebooks)
        ctx.mark_non_differentiable(codes)
        ctx.save_for_backward(codes)
        ctx.shape = codebooks.shape
        return codes, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor | None]:
        if not ctx.needs_input_grad[1]:
            return None, None
        (codes,), d_total = ctx.saved_tensors, grads[1]
        d_books = d_total.new_zeros(ctx.shape)
        for level, chosen in enumerate(codes.unbind(1)):
            d_books[level].index_add_(0, chosen, d_total)
        return None, d_books


def _triton_supports(z: torch.Tensor, codebooks: torch.Tensor) -> str | None:
    if codebooks.dtype != torch.float32:
        return f"needs float32 codebooks, got {codebooks.dtype}"
    return triton_support.reason_against(z, codebooks)


registry.register(
    "vq_nearest", "triton", VQNearest.apply, supports=_triton_supports, available=triton_support.available
)
registry.register("vq_nearest", "reference", reference.vq_nearest)
