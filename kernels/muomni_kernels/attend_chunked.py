"""Packed attention on a CPU: chunks of queries over the keys they can see, exact, without a T x T product."""

from __future__ import annotations

import functools

import torch

QUERY_CHUNK = 128
"""Queries of one product."""


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
    bounds: tuple[int, ...], causal: bool, window: int | None, groups: int
) -> list[tuple[int, int, int, int, torch.Tensor]]:
    """(first query, end, first key, end, bias (1, groups * queries, keys)) of every chunk of queries.

    The bias is 0 where a query may look and -inf elsewhere. Kept for the layers of one model, which share it.
    """
    spans = [(a, b) for a, b in zip(bounds, bounds[1:], strict=False) if b > a]
    sizes = torch.tensor([b - a for a, b in spans])
    starts, ends = (torch.repeat_interleave(torch.tensor(edge), sizes) for edge in zip(*spans, strict=True))
    position = torch.arange(bounds[-1])
    if window is not None:
        starts, ends = torch.maximum(starts, position - window + 1), torch.minimum(ends, position + window)
    if causal:
        ends = position + 1
    plan = []
    for begin in range(0, bounds[-1], QUERY_CHUNK):
        end = min(begin + QUERY_CHUNK, bounds[-1])
        # What a query sees starts and ends no earlier than what the one before it sees.
        first, last = int(starts[begin]), int(ends[end - 1])
        keys = position[first:last]
        hidden = (keys < starts[begin:end, None]) | (keys >= ends[begin:end, None])
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


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """One batched product when all documents are equally long, else chunks of queries over what they see.

    Shapes as in `attend.attention`; raises ValueError for cu_seqlens or max_seqlen that do not fit. Work grows
    with T * (chunk + document or window), not with T * T. Reading cu_seqlens costs nothing on a CPU.
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
        everything = not causal and window is None
        bias = None if everything else _chunk_plan((0, length), causal, window, groups)[0][4]
        pieces = [_softmax_attention(rows[0], rows[1], rows[2], bias).reshape(used, *q.shape[1:])]
    else:
        pieces = [
            _softmax_attention(q[None, begin:end], k[None, first:last], v[None, first:last], bias)[0]
            for begin, end, first, last, bias in _chunk_plan(bounds, causal, window, groups)
        ]
    if used < n_tokens:
        pieces.append(q.new_zeros(n_tokens - used, *q.shape[1:]))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def reason_against(q: torch.Tensor, *_: object) -> str | None:
    """None when it can run on q, else the reason against it."""
    if q.device.type != "cpu":
        return f"needs a CPU tensor (it reads cu_seqlens), got {q.device.type}"
    return (
        "cannot be traced by torch.compile (it reads cu_seqlens)" if torch.compiler.is_compiling() else None
    )
