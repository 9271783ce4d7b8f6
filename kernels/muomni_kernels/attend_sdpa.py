"""Attention by PyTorch's scaled_dot_product_attention under a mask: any device, any dtype, no host sync."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _product(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, Tq, H, D), (B, Tk, Hkv, D) twice, mask broadcast to (B, H, Tq, Tk) -> (B, Tq, H, D)."""
    grouped = q.shape[2] != k.shape[2]
    if grouped and q.is_cuda:
        # With a mask only the memory-efficient kernel avoids the T x T scores, and it takes no grouped keys.
        groups = q.shape[2] // k.shape[2]
        k, v, grouped = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2), False
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped).transpose(1, 2)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """One call under a T x T block mask built on the device. Shapes as in `attend.attention`."""
    position = torch.arange(q.shape[0], device=q.device, dtype=torch.int32)
    document = torch.searchsorted(cu_seqlens, position, right=True)
    inside = position < cu_seqlens[-1]
    seen = document[:, None] == document[None, :]
    before = position[:, None] - position[None, :]
    if causal:
        seen = seen & (before >= 0)
    if window is not None:
        seen = seen & ((before if causal else before.abs()) < window)
    out = _product(q[None], k[None], v[None], seen)[0]
    return torch.where(inside[:, None, None], out, 0.0).to(q.dtype)


def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None = None,
) -> torch.Tensor:
    """One call under a length mask; on a CPU, what no row of the caches needs is not touched."""
    n_queries, first = q.shape[1], 0
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        longest, shortest = int(lengths.max()), int(lengths.min())
        if shortest < n_queries or longest > k_cache.shape[1]:
            raise ValueError(
                f"lengths: expected {n_queries} (the new queries) to {k_cache.shape[1]} (the caches), got "
                f"{lengths.tolist()[:8]}."
            )
        first = 0 if window is None else max(0, shortest - n_queries + 1 - window)
        k_cache, v_cache = k_cache[:, first:longest], v_cache[:, first:longest]
        if n_queries == 1 and shortest == longest:
            return _product(q, k_cache, v_cache)
    limit = (
        lengths.view(-1, 1, 1, 1) - n_queries + 1 + torch.arange(n_queries, device=q.device).view(1, 1, -1, 1)
    )
    key = first + torch.arange(k_cache.shape[1], device=q.device)
    seen = key < limit
    if window is not None:
        seen = seen & (key >= limit - window)
    return _product(q, k_cache, v_cache, seen)
