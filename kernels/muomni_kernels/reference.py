"""The specification of every tensor op in plain PyTorch. Where a kernel differs, the kernel is wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _wide(x: torch.Tensor) -> torch.Tensor:
    """At least fp32: half types are computed in fp32, fp64 stays for gradcheck."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in at least fp32."""
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * _wide(weight)).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """s = residual + x in residual's dtype, and its RMSNorm in x's."""
    s = (_wide(residual) + _wide(x)).to(residual.dtype)
    return rms_norm(s, weight, eps).to(x.dtype), s


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + R/2) of the first R = 2 * cos.shape[-1] features by each token's angles."""
    half = cos.shape[-1]
    cos, sin = cos.detach(), sin.detach()
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    wide_a, wide_b, c, s = _wide(first), _wide(second), cos.unsqueeze(-2), sin.unsqueeze(-2)
    turned = torch.cat((wide_a * c - wide_b * s, wide_b * c + wide_a * s), dim=-1).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def qk_norm_rope(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split (T, (H + 2 Hkv) * D) into heads, RMSNorm those of q and k, rotate them; v as it is."""
    heads = qkv.reshape(qkv.shape[0], n_heads + 2 * n_kv_heads, q_weight.shape[0])
    q, k, v = heads.split([n_heads, n_kv_heads, n_kv_heads], dim=1)
    q, k = rms_norm(_wide(q), q_weight, eps), rms_norm(_wide(k), k_weight, eps)
    if cos is not None and sin is not None:
        q, k = rope(q, cos, sin), rope(k, cos, sin)
    return q.to(qkv.dtype), k.to(qkv.dtype), v


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for packed (..., 2F) = gate, up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(_wide(gate)) * _wide(up)).to(gate_up.dtype)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v inside each document, over |i - j| < window; zeros past the last document."""
    n_groups = q.shape[1] // k.shape[1]
    pieces: list[torch.Tensor] = []
    bounds = cu_seqlens.tolist()
    for start, stop in zip(bounds, bounds[1:], strict=False):
        if stop == start:
            continue
        qd, kd, vd = (_wide(t[start:stop]).transpose(0, 1) for t in (q, k, v))
        kd, vd = kd.repeat_interleave(n_groups, dim=0), vd.repeat_interleave(n_groups, dim=0)
        scores = qd @ kd.transpose(1, 2) * q.shape[-1] ** -0.5
        before = torch.arange(stop - start, device=q.device)[:, None] - torch.arange(
            stop - start, device=q.device
        )
        if causal:
            scores = scores.masked_fill(before < 0, float("-inf"))
        if window is not None:
            scores = scores.masked_fill(before.abs() >= window, float("-inf"))
        pieces.append((scores.softmax(-1) @ vd).transpose(0, 1).to(q.dtype))
    pieces.append(q.new_zeros(q.shape[0] - bounds[-1], *q.shape[1:]))
    return torch.cat(pieces)


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None = None,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v where query i of Tq sees the last `window` keys before lengths - Tq + 1 + i."""
    n_groups, n_queries = q.shape[2] // k_cache.shape[2], q.shape[1]
    keys = _wide(k_cache).repeat_interleave(n_groups, dim=2).permute(0, 2, 3, 1)
    values = _wide(v_cache).repeat_interleave(n_groups, dim=2).transpose(1, 2)
    scores = _wide(q).transpose(1, 2) @ keys * q.shape[-1] ** -0.5
    limit = (
        lengths.view(-1, 1, 1, 1) - n_queries + 1 + torch.arange(n_queries, device=q.device).view(1, 1, -1, 1)
    )
    key = torch.arange(k_cache.shape[1], device=q.device)
    seen = key < limit if window is None else (key < limit) & (key >= limit - window)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    # A cache row past the length may hold anything, NaN included: weight 0 must give 0.
    values = values.masked_fill(~seen.any(2).unsqueeze(-1), 0.0)
    return (weights @ values).transpose(1, 2).to(q.dtype)


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    options: tuple[int, float, float, float],
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """lse - (1 - e) z_y - e mean(z) + z_loss lse^2 of all logits at once; (N, K, D), (K, V, D), (N, K), (K, V).

    Returns the sum over N and the count, (K,); or with reduction "none" each loss and whether z_y is the largest.
    """
    ignore_index, label_smoothing, z_loss, softcap = options
    z = _wide(torch.bmm(x.transpose(0, 1), weight.to(x.dtype).transpose(1, 2)))
    if bias is not None:
        z = z + _wide(bias)[:, None]
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    counts, known = labels != ignore_index, (labels >= 0) & (labels < weight.shape[1])
    z_y = z.gather(2, torch.where(known, labels, 0).t().unsqueeze(2)).squeeze(2).t()
    lse = z.logsumexp(2).t()
    losses = lse - z_y + z_loss * lse.square()
    if label_smoothing:
        losses = losses + label_smoothing * (z_y - z.mean(2).t())
    losses = torch.where(counts, losses * torch.where(known | ~counts, 1.0, float("nan")), 0.0)
    if reduction == "none":
        return losses.detach(), counts & (z.argmax(2).t() == labels)
    return losses.sum(0), counts.sum(0)


def vq_nearest(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per level the word of the smallest |c|^2 - 2 r.c, in codebooks' dtype; r is what the words before left of z."""
    residual = z.detach().to(codebooks.dtype)
    total, codes = torch.zeros_like(residual), []
    for book in codebooks:
        fixed = book.detach()
        codes.append(torch.addmm(fixed.square().sum(-1), residual, fixed.t(), alpha=-2.0).argmin(-1))
        word = F.embedding(codes[-1], book)
        residual, total = residual - word.detach(), total + word
    return torch.stack(codes, dim=1) if codes else z.new_empty(len(z), 0, dtype=torch.int64), total
