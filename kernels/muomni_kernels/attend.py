"""Attention: packed variable-length documents for training, a preallocated cache for decoding.

The public functions, their checks, and which backends there are.
"""

from __future__ import annotations

import torch

from muomni_kernels import attend_chunked, attend_flash, attend_sdpa, checks, reference, registry


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v inside each document of a packed row; documents never see each other.

    q:          (T, H, D); k, v: (T, Hkv, D) with Hkv dividing H (grouped queries): heads i * H/Hkv to
                (i + 1) * H/Hkv - 1 of q share head i of k and v.
    cu_seqlens: (n + 1,) int32, document i is rows cu_seqlens[i]:cu_seqlens[i + 1]; may be padded by
                repeating the last value. Rows past it belong to no document: zeros, and no gradient.
    max_seqlen: at least the longest document.
    causal:     row i sees the rows j <= i of its document; otherwise all of its document.
    window:     at least 1, or None for no limit. Row i sees only the rows with |i - j| < window: itself and
                window - 1 before it, and unless causal also window - 1 after it.
    Returns (T, H, D) of q's dtype. Differentiable in q, k, v. Raises ValueError when shapes, dtypes or devices
    do not fit, and on a CPU when cu_seqlens does not rise from 0 to at most T in steps of at most max_seqlen: on
    a GPU that would cost a host sync.
    """
    if (
        q.ndim != 3
        or k.shape != v.shape
        or k.ndim != 3
        or q.shape[0] != k.shape[0]
        or q.shape[2] != k.shape[2]
    ):
        raise ValueError(
            f"q, k, v: expected (T, H, D) and twice (T, Hkv, D), got {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(v.shape)}."
        )
    _check_heads("k", q.shape[1], k.shape[1])
    checks.floating("q", q)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v: expected one dtype, got {q.dtype}, {k.dtype}, {v.dtype}.")
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or not cu_seqlens.shape[0]:
        raise ValueError(
            f"cu_seqlens: expected (n + 1,) int32, got {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}."
        )
    checks.one_device("q", q, k=k, v=v, cu_seqlens=cu_seqlens)
    if max_seqlen < 1:
        raise ValueError(f"max_seqlen: expected at least 1, got {max_seqlen}.")
    _check_window(window)
    if window is not None and window >= max_seqlen:
        window = None  # It hides nothing, and what has no window is faster.
    arguments = (q, k, v, cu_seqlens, max_seqlen, causal, window)
    return registry.select("attention", *arguments)(*arguments)


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    lengths: torch.Tensor,
    window: int | None = None,
) -> torch.Tensor:
    """Attention of new queries over a cache that already holds their keys.

    q:                (B, Tq, H, D); query i sees the keys before lengths - Tq + 1 + i.
    k_cache, v_cache: (B, Tmax, Hkv, D); what lies past a row's length has no influence, but must be finite.
    lengths:          (B,) integer, valid keys of each row, the new ones included: Tq to Tmax.
    window:           at least 1, or None for no limit: of those keys a query sees the last `window`, its own
                      included, as in `attention`.
    Returns (B, Tq, H, D). Raises ValueError when shapes, dtypes or devices do not fit.
    """
    if (
        q.ndim != 4
        or k_cache.shape != v_cache.shape
        or k_cache.ndim != 4
        or q.shape[0] != k_cache.shape[0]
        or q.shape[3] != k_cache.shape[3]
    ):
        raise ValueError(
            f"q, caches: expected (B, Tq, H, D) and (B, Tmax, Hkv, D), got {tuple(q.shape)}, {tuple(k_cache.shape)}, "
            f"{tuple(v_cache.shape)}."
        )
    checks.floating("q", q)
    if not q.dtype == k_cache.dtype == v_cache.dtype:
        raise ValueError(f"q, caches: expected one dtype, got {q.dtype}, {k_cache.dtype}, {v_cache.dtype}.")
    _check_heads("k_cache", q.shape[2], k_cache.shape[2])
    if lengths.shape != q.shape[:1] or lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"lengths: expected ({q.shape[0]},) int32 or int64, got {tuple(lengths.shape)} {lengths.dtype}."
        )
    checks.one_device("q", q, k_cache=k_cache, v_cache=v_cache, lengths=lengths)
    _check_window(window)
    arguments = (q, k_cache, v_cache, lengths, window)
    return registry.select("attention_decode", *arguments)(*arguments)


def _check_heads(name: str, n_heads: int, n_kv_heads: int) -> None:
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise ValueError(f"{name}: expected a number of heads that divides {n_heads}, got {n_kv_heads}.")


def _check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise ValueError(f"window: expected at least 1, or None for no limit, got {window}.")


for _op, _name, _run, _supports, _available in (
    ("attention", "flash", attend_flash.flash, attend_flash.flash_supports, attend_flash.flash_available),
    ("attention", "varlen", attend_flash.varlen, attend_flash.varlen_supports, attend_flash.varlen_available),
    ("attention", "chunked", attend_chunked.attention, attend_chunked.reason_against, registry.anywhere),
    ("attention", "sdpa_mask", attend_sdpa.attention, registry.anywhere, registry.anywhere),
    ("attention", "reference", reference.attention, registry.anywhere, registry.anywhere),
    (
        "attention_decode",
        "flash",
        attend_flash.decode,
        attend_flash.decode_supports,
        attend_flash.flash_available,
    ),
    ("attention_decode", "sdpa", attend_sdpa.decode, registry.anywhere, registry.anywhere),
    ("attention_decode", "reference", reference.attention_decode, registry.anywhere, registry.anywhere),
):
    registry.register(_op, _name, _run, supports=_supports, available=_available)
