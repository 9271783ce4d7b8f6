"""Packed attention on a CPU: chunks of queries over the keys they can see, exact, without a T x T product."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.autograd.function import once_differentiable

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
    """(first query, end, first key, end, bias (1, queries * groups, keys)) of every chunk of queries.

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
        bias = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        bias = bias.repeat_interleave(groups, dim=0)[None]
        plan.append((begin, end, first, last, bias))
    return plan


def _softmax_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """(B, Tq, H, D), (B, Tk, Hkv, D) twice, bias (1, Tq * H // Hkv, Tk) or None -> (B, Tq, H, D).

    Queries that share a key head stand in one matrix, so grouped keys are never copied.
    """
    n, n_queries, heads, d = q.shape
    n_keys, kv_heads = k.shape[1], k.shape[2]
    groups = heads // kv_heads
    queries = q.view(n, n_queries, kv_heads, groups, d).transpose(1, 2)
    queries = queries.reshape(n * kv_heads, n_queries * groups, d)
    keys = k.permute(0, 2, 3, 1).reshape(n * kv_heads, d, n_keys)
    values = v.transpose(1, 2).reshape(n * kv_heads, n_keys, d)
    if bias is None:
        scores = torch.bmm(queries * d**-0.5, keys)
    else:
        scores = torch.baddbmm(bias.to(q.dtype), queries, keys, alpha=d**-0.5)
    out = torch.bmm(scores.softmax(-1), values)
    return out.view(n, kv_heads, n_queries, groups, d).transpose(1, 2).reshape(n, n_queries, heads, d)


class _Chunks(torch.autograd.Function):
    """Chunk by chunk, and so its gradient: every chunk adds to its own rows of the gradients. Slices that autograd
    tracks would each write and add gradients of all rows."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        plan: list[tuple[int, int, int, int, torch.Tensor]],
    ) -> torch.Tensor:
        """q (T, H, D), k and v (T, Hkv, D) -> (T, H, D); rows that no chunk has are zero."""
        queries, keys, values = _by_head(q, k.shape[1]), k.transpose(0, 1), v.transpose(0, 1)
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        shares, keep = [], any(ctx.needs_input_grad)
        # Under autocast too everything is of the inputs' dtype, softmax inside it in float32.
        with torch.autocast("cpu", enabled=False):
            for begin, end, first, last, bias in plan:
                chunk, seen = _rows(queries, begin, end), keys[:, first:last].transpose(1, 2)
                scores = torch.baddbmm(bias.to(q.dtype), chunk, seen, alpha=q.shape[2] ** -0.5)
                share = torch.softmax(scores, -1)
                if keep:
                    shares.append(share)
                piece = torch.bmm(share, values[:, first:last])
                _tokens(out, begin, end, k.shape[1]).copy_(piece.view(len(keys), end - begin, -1, q.shape[2]))
        ctx.plan = plan
        ctx.save_for_backward(queries, k, v, *shares)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (d_out,) = grads
        queries, k, v, *shares = ctx.saved_tensors
        n_tokens, kv_heads, d = k.shape
        keys, values, scale = k.transpose(0, 1), v.transpose(0, 1), d**-0.5
        d_rows = _by_head(d_out, kv_heads)
        d_q = torch.zeros_like(d_out, memory_format=torch.contiguous_format)
        d_k, d_v = (k.new_zeros(kv_heads, n_tokens, d) for _ in range(2))
        for (begin, end, first, last, _), share in zip(ctx.plan, shares, strict=True):
            chunk, d_chunk = _rows(queries, begin, end), _rows(d_rows, begin, end)
            d_v[:, first:last].baddbmm_(share.transpose(1, 2), d_chunk)
            d_share = torch.bmm(d_chunk, values[:, first:last].transpose(1, 2))
            d_scores = torch.ops.aten._softmax_backward_data(d_share, share, -1, share.dtype)
            d_k[:, first:last].baddbmm_(d_scores.transpose(1, 2), chunk, alpha=scale)
            piece = torch.bmm(d_scores, keys[:, first:last])
            torch.mul(piece.view(kv_heads, end - begin, -1, d), scale, out=_tokens(d_q, begin, end, kv_heads))
        return d_q, d_k.transpose(0, 1), d_v.transpose(0, 1), None


def _by_head(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(T, H, D) -> (Hkv, T, H // Hkv, D), contiguous: the queries of a key head stand together."""
    return x.reshape(x.shape[0], kv_heads, -1, x.shape[2]).transpose(0, 1).contiguous()


def _rows(x: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """Tokens begin:end of (Hkv, T, G, D) as rows, (Hkv, (end - begin) * G, D); a view."""
    return x[:, begin:end].flatten(1, 2)


def _tokens(x: torch.Tensor, begin: int, end: int, kv_heads: int) -> torch.Tensor:
    """Tokens begin:end of (T, H, D) by key head, (Hkv, end - begin, G, D); a view."""
    return x[begin:end].view(end - begin, kv_heads, -1, x.shape[2]).transpose(0, 1)


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
        out = _softmax_attention(rows[0], rows[1], rows[2], bias).reshape(used, *q.shape[1:])
        return out if used == n_tokens else torch.cat([out, q.new_zeros(n_tokens - used, *q.shape[1:])])
    return _Chunks.apply(q, k, v, _chunk_plan(bounds, causal, window, groups))


def reason_against(q: torch.Tensor, *_: object) -> str | None:
    """None when it can run on q, else the reason against it."""
    if q.device.type != "cpu":
        return f"needs a CPU tensor (it reads cu_seqlens), got {q.device.type}"
    return (
        "cannot be traced by torch.compile (it reads cu_seqlens)" if torch.compiler.is_compiling() else None
    )
