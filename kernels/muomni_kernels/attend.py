"""Attention: packed variable-length documents for training, a preallocated cache for decoding."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F

from muomni_kernels import reference, registry

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

QUERY_CHUNK = 128
"""Queries of one product of the chunked CPU backend."""


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v inside each document of a packed row; documents never see each other.

    q:          (T, H, D); k, v: (T, Hkv, D) with Hkv dividing H (grouped queries).
    cu_seqlens: (n + 1,) int32, document i is rows cu_seqlens[i]:cu_seqlens[i + 1]; may be padded by
                repeating the last value. Rows past it belong to no document and give zeros.
    max_seqlen: at least the longest document.
    Returns (T, H, D) of q's dtype. Differentiable in q, k, v. Raises ValueError when shapes or dtypes do not
    fit, and on a CPU when cu_seqlens does not rise from 0 to at most T in steps of at most max_seqlen: on a
    GPU that would cost a host sync.
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
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"k: expected a number of heads that divides {q.shape[1]}, got {k.shape[1]}.")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v: expected one dtype, got {q.dtype}, {k.dtype}, {v.dtype}.")
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or not cu_seqlens.shape[0]:
        raise ValueError(
            f"cu_seqlens: expected (n + 1,) int32, got {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}."
        )
    arguments = (q, k, v, cu_seqlens, max_seqlen, causal)
    return registry.select("attention", *arguments)(*arguments)


def attention_decode(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, *, lengths: torch.Tensor
) -> torch.Tensor:
    """Attention of new queries over a cache that already holds their keys.

    q:                (B, Tq, H, D); query i sees the keys before lengths - Tq + 1 + i.
    k_cache, v_cache: (B, Tmax, Hkv, D); what lies past a row's length has no influence, but must be finite.
    lengths:          (B,) integer, valid keys of each row, the new ones included: Tq to Tmax.
    Returns (B, Tq, H, D). Raises ValueError when shapes or dtypes do not fit.
    """
    if q.ndim != 4 or k_cache.shape != v_cache.shape or k_cache.ndim != 4 or q.shape[0] != k_cache.shape[0]:
        raise ValueError(
            f"q, caches: expected (B, Tq, H, D) and (B, Tmax, Hkv, D), got {tuple(q.shape)}, {tuple(k_cache.shape)}, "
            f"{tuple(v_cache.shape)}."
        )
    if not q.dtype == k_cache.dtype == v_cache.dtype:
        raise ValueError(f"q, caches: expected one dtype, got {q.dtype}, {k_cache.dtype}, {v_cache.dtype}.")
    if q.shape[2] % k_cache.shape[2] or lengths.shape != q.shape[:1]:
        raise ValueError(
            f"k_cache, lengths: expected heads dividing {q.shape[2]} and ({q.shape[0]},), got {k_cache.shape[2]} and "
            f"{tuple(lengths.shape)}."
        )
    return registry.select("attention_decode", q, k_cache, v_cache, lengths)(q, k_cache, v_cache, lengths)


def _heads_first(t: torch.Tensor) -> torch.Tensor:
    return t.transpose(-3, -2)


@functools.lru_cache(maxsize=8)
def _check_bounds(bounds: tuple[int, ...], n_tokens: int, max_seqlen: int) -> None:
    """Raises ValueError for cu_seqlens that would silently mix, cut or lose documents."""
    lengths = [b - a for a, b in zip(bounds, bounds[1:], strict=False)]
    if bounds[0] or bounds[-1] > n_tokens or min(lengths, default=0) < 0:
        raise ValueError(f"cu_seqlens: expected values rising from 0 to at most {n_tokens}, got {bounds}.")
    longest = max(lengths, default=0)
    if longest > max_seqlen:
        raise ValueError(f"max_seqlen: expected at least the longest document, {longest}, got {max_seqlen}.")


@functools.lru_cache(maxsize=8)
def _chunk_plan(
    bounds: tuple[int, ...], causal: bool, groups: int
) -> list[tuple[int, int, int, int, torch.Tensor]]:
    """(first query, end, first key, end, bias (1, groups * queries, keys)) of every chunk of queries.

    The bias is 0 where a query may look and -inf elsewhere. Kept for the layers of one model, which share it.
    """
    spans = [(a, b) for a, b in zip(bounds, bounds[1:], strict=False) if b > a]
    sizes = torch.tensor([b - a for a, b in spans])
    starts, ends = (torch.repeat_interleave(torch.tensor(edge), sizes) for edge in zip(*spans, strict=True))
    position = torch.arange(bounds[-1])
    plan = []
    for begin in range(0, bounds[-1], QUERY_CHUNK):
        end = min(begin + QUERY_CHUNK, bounds[-1])
        first, last = int(starts[begin]), end if causal else int(ends[end - 1])
        keys, rows = position[first:last], slice(begin, end)
        limit = position[rows] + 1 if causal else ends[rows]
        hidden = (keys < starts[rows, None]) | (keys >= limit[:, None])
        bias = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf")).repeat(groups, 1)[None]
        plan.append((begin, end, first, last, bias))
    return plan


def _softmax_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """(B, Tq, H, D), (B, Tk, Hkv, D) twice, bias (1, H // Hkv * Tq, Tk) or None -> (B, Tq, H, D).

    Queries that share a key head stand in one matrix, so grouped keys are never copied.
    """
    n, n_queries, heads, d = q.shape
    n_keys, kv_heads = k.shape[1], k.shape[2]
    groups = heads // kv_heads
    queries = q.view(n, n_queries, kv_heads, groups, d).permute(0, 2, 3, 1, 4)
    queries = queries.reshape(n * kv_heads, groups * n_queries, d)
    keys = k.permute(0, 2, 3, 1).reshape(n * kv_heads, d, n_keys)
    values = v.transpose(1, 2).reshape(n * kv_heads, n_keys, d)
    if bias is None:
        scores = torch.bmm(queries * d**-0.5, keys)
    else:
        scores = torch.baddbmm(bias.to(q.dtype), queries, keys, alpha=d**-0.5)
    out = torch.bmm(scores.softmax(-1), values)
    return out.view(n, kv_heads, groups, n_queries, d).permute(0, 3, 1, 2, 4).reshape(n, n_queries, heads, d)


def _chunked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, causal: bool
) -> torch.Tensor:
    """CPU: one batched product when all documents are equally long, else chunks of queries over what they see.

    Work grows with T * (chunk + document), not with T * T. Reading cu_seqlens costs nothing on a CPU.
    """
    bounds = tuple(cu_seqlens.tolist())
    _check_bounds(bounds, q.shape[0], max_seqlen)
    used, n_tokens, groups = bounds[-1], q.shape[0], q.shape[1] // k.shape[1]
    if not used:
        return torch.zeros_like(q)
    lengths = {b - a for a, b in zip(bounds, bounds[1:], strict=False) if b > a}
    length = max(lengths)
    if len(lengths) == 1 and length <= QUERY_CHUNK:
        rows = [t[:used].reshape(used // length, length, *t.shape[1:]) for t in (q, k, v)]
        bias = _chunk_plan((0, length), causal, groups)[0][4] if causal else None
        pieces = [_softmax_attention(rows[0], rows[1], rows[2], bias).reshape(used, *q.shape[1:])]
    else:
        pieces = [
            _softmax_attention(q[None, begin:end], k[None, first:last], v[None, first:last], bias)[0]
            for begin, end, first, last, bias in _chunk_plan(bounds, causal, groups)
        ]
    if used < n_tokens:
        pieces.append(q.new_zeros(n_tokens - used, *q.shape[1:]))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _sdpa_mask(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, causal: bool
) -> torch.Tensor:
    """Any device, no host sync: one SDPA call under a T x T block mask built on the device."""
    position = torch.arange(q.shape[0], device=q.device, dtype=torch.int32)
    document = torch.searchsorted(cu_seqlens, position, right=True)
    inside = position < cu_seqlens[-1]
    seen = document[:, None] == document[None, :]
    if causal:
        seen = seen & (position[:, None] >= position[None, :])
    out = F.scaled_dot_product_attention(
        _heads_first(q)[None],
        _heads_first(k)[None],
        _heads_first(v)[None],
        attn_mask=seen,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return torch.where(inside[:, None, None], _heads_first(out[0]), 0.0)


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, causal: bool
) -> torch.Tensor:
    """CUDA: PyTorch's own variable-length kernel; grouped keys are repeated for it.

    The kernel leaves the rows of no document unwritten, in its output and in its gradients: both are cut off.
    """
    inside = (torch.arange(q.shape[0], device=q.device, dtype=torch.int32) < cu_seqlens[-1])[:, None, None]
    q, k, v = (torch.where(inside, t, 0.0) for t in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    window = (-1, 0) if causal else (-1, -1)
    assert varlen_attn is not None
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=window)
    assert isinstance(out, torch.Tensor)
    return torch.where(inside, out, 0.0)


def _reason_against_varlen(function: Callable[..., object] | None) -> str | None:
    """None when this torch's kernel has the interface used here, else the reason against it."""
    if function is None:
        return "this torch has no torch.nn.attention.varlen"
    if "window_size" not in inspect.signature(function).parameters:
        return "this torch's varlen_attn has no window_size"
    return None


_NO_VARLEN = _reason_against_varlen(varlen_attn)


def _varlen_available() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device, this machine has none"
    return _NO_VARLEN


def _varlen_supports(q: torch.Tensor, *_: object) -> str | None:
    if not q.is_cuda:
        return f"needs a CUDA tensor, got {q.device.type}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, got {q.dtype}"
    if q.shape[2] % 8 or q.shape[2] > 256:
        return f"needs a head_dim that is a multiple of 8 up to 256, got {q.shape[2]}"
    if torch.cuda.get_device_properties(q.device).major < 8:
        return "needs compute capability 8.0"
    return _varlen_available()


def _chunked_supports(q: torch.Tensor, *_: object) -> str | None:
    if q.device.type != "cpu":
        return f"needs a CPU tensor (it reads cu_seqlens), got {q.device.type}"
    return (
        "cannot be traced by torch.compile (it reads cu_seqlens)" if torch.compiler.is_compiling() else None
    )


def _anything(*_: object) -> None:
    """Runs wherever PyTorch does."""


def _decode_sdpa(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """One SDPA call under a length mask; keys and values past every row's length are not touched on a CPU."""
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        longest = int(lengths.max())
        k_cache, v_cache = k_cache[:, :longest], v_cache[:, :longest]
        if q.shape[1] == 1 and int(lengths.min()) == longest:
            out = F.scaled_dot_product_attention(
                _heads_first(q),
                _heads_first(k_cache),
                _heads_first(v_cache),
                enable_gqa=q.shape[2] != k_cache.shape[2],
            )
            return _heads_first(out)
    n_queries = q.shape[1]
    limit = (
        lengths.view(-1, 1, 1, 1) - n_queries + 1 + torch.arange(n_queries, device=q.device).view(1, 1, -1, 1)
    )
    seen = torch.arange(k_cache.shape[1], device=q.device) < limit
    out = F.scaled_dot_product_attention(
        _heads_first(q),
        _heads_first(k_cache),
        _heads_first(v_cache),
        attn_mask=seen,
        enable_gqa=q.shape[2] != k_cache.shape[2],
    )
    return _heads_first(out)


registry.register("attention", "varlen", _varlen, supports=_varlen_supports, available=_varlen_available)
registry.register("attention", "chunked", _chunked, supports=_chunked_supports, available=_anything)
registry.register("attention", "sdpa_mask", _sdpa_mask, supports=_anything, available=_anything)
registry.register("attention", "reference", reference.attention, supports=_anything, available=_anything)
registry.register("attention_decode", "sdpa", _decode_sdpa, supports=_anything, available=_anything)
registry.register(
    "attention_decode", "reference", reference.attention_decode, supports=_anything, available=_anything
)
