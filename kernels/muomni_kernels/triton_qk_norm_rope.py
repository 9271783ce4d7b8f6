"""Packed QKV -> q, k, v in Triton: split, RMSNorm of every head of q and k, rotation by each token's angles.

With a head's halves a, b, r = 1 / sqrt(mean(x^2) + eps) and n = x * r * w: q_a = n_a cos - n_b sin,
q_b = n_b cos + n_a sin; v is copied. Saved for backward: qkv, weights, cos, sin; r, the normalised head and the
rotation are computed again, because the whole head is read anyway. Backward: the rotation by the opposite angle,
then RMSNorm's, written into one packed dqkv; dw of q and k are kept in registers over a persistent grid.
A program holds the angles of its tokens in registers and walks over their heads.
Bytes per element of qkv (bf16): 4 forward, 6 backward; 8 a token and pair of features for cos and sin; partial dw.
"""

# Triton's language has no types a checker could follow into helpers and static_range.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from muomni_kernels.triton_support import ceil_div, launch, n_programs, next_power_of_two

WARPS = 2
"""Warps of a program; each lane then loads 16 bytes of bf16 from a half head."""
FORWARD_REGISTERS = 96
"""Most registers of a thread: left alone, ptxas spills 8 bytes to fit one more block on a multiprocessor."""
PARTIALS = 16
"""Programs of the backward per multiprocessor: even one tile each makes the partial dw 1 % of the bytes."""


@triton.jit
def _angles(cos_ptr, sin_ptr, tokens, cols, inside, HALF: tl.constexpr):
    at = tokens[:, None] * HALF + cols[None, :]
    return tl.load(cos_ptr + at, mask=inside, other=1.0), tl.load(sin_ptr + at, mask=inside, other=0.0)


@triton.jit
def _halves(ptr, at, inside, HALF: tl.constexpr):
    a = tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(ptr + at + HALF, mask=inside, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def _store_halves(ptr, at, a, b, inside, HALF: tl.constexpr):
    tl.store(ptr + at, a.to(ptr.dtype.element_ty), mask=inside)
    tl.store(ptr + at + HALF, b.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _weight(ptr, cols, HALF: tl.constexpr):
    w_a = tl.load(ptr + cols, mask=cols < HALF, other=0.0).to(tl.float32)
    w_b = tl.load(ptr + HALF + cols, mask=cols < HALF, other=0.0).to(tl.float32)
    return w_a[None, :], w_b[None, :]


@triton.jit
def _normalise(a, b, HALF: tl.constexpr, EPS: tl.constexpr):
    rstd = (1.0 / tl.sqrt(tl.sum(a * a + b * b, axis=1) / (2 * HALF) + EPS))[:, None]
    return a * rstd, b * rstd, rstd


@triton.jit
def _forward_head(a, b, w_a, w_b, c, s, HALF: tl.constexpr, EPS: tl.constexpr, ROPE: tl.constexpr):
    a, b, _ = _normalise(a, b, HALF, EPS)
    a, b = a * w_a, b * w_b
    if ROPE:
        a, b = a * c - b * s, b * c + a * s
    return a, b


@triton.jit
def _backward_head(da, db, a, b, w_a, w_b, c, s, HALF: tl.constexpr, EPS: tl.constexpr, ROPE: tl.constexpr):
    """Gradients of both halves, and what the head adds to dw."""
    if ROPE:
        da, db = da * c + db * s, db * c - da * s
    a, b, rstd = _normalise(a, b, HALF, EPS)
    dw_a, dw_b = da * a, db * b
    mean = (tl.sum(dw_a * w_a + dw_b * w_b, axis=1) / (2 * HALF))[:, None]
    return rstd * (da * w_a - a * mean), rstd * (db * w_b - b * mean), dw_a, dw_b


@triton.jit
def qk_norm_rope_forward_kernel(
    qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, v_ptr, n_tokens,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr, ROPE: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All heads of TOKENS tokens per program."""
    D: tl.constexpr = 2 * HALF
    tokens = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = (tokens < n_tokens)[:, None] & (cols < HALF)[None, :]
    c, s = 1.0, 0.0
    if ROPE:
        c, s = _angles(cos_ptr, sin_ptr, tokens, cols, inside, HALF)
    at = tokens[:, None] * ((HEADS + 2 * KV_HEADS) * D) + cols[None, :]
    q_at = tokens[:, None] * (HEADS * D) + cols[None, :]
    k_at = tokens[:, None] * (KV_HEADS * D) + cols[None, :]
    w_a, w_b = _weight(q_weight_ptr, cols, HALF)
    for head in tl.range(0, HEADS, loop_unroll_factor=2):
        a, b = _halves(qkv_ptr, at + head * D, inside, HALF)
        a, b = _forward_head(a, b, w_a, w_b, c, s, HALF, EPS, ROPE)
        _store_halves(q_ptr, q_at + head * D, a, b, inside, HALF)
    w_a, w_b = _weight(k_weight_ptr, cols, HALF)
    for head in tl.range(0, KV_HEADS, loop_unroll_factor=2):
        a, b = _halves(qkv_ptr, at + (HEADS + head) * D, inside, HALF)
        a, b = _forward_head(a, b, w_a, w_b, c, s, HALF, EPS, ROPE)
        _store_halves(k_ptr, k_at + head * D, a, b, inside, HALF)
    for head in tl.range(0, KV_HEADS, loop_unroll_factor=2):
        a, b = _halves(qkv_ptr, at + (HEADS + KV_HEADS + head) * D, inside, HALF)
        _store_halves(v_ptr, k_at + head * D, a, b, inside, HALF)


@triton.jit
def qk_norm_rope_backward_kernel(
    dq_ptr, dk_ptr, dv_ptr, qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, dqkv_ptr, partial_ptr, n_tokens,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr, ROPE: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Persistent over token tiles; each program leaves one row of partial dw for q and one for k."""
    D: tl.constexpr = 2 * HALF
    cols = tl.arange(0, BLOCK)
    qw_a, qw_b = _weight(q_weight_ptr, cols, HALF)
    kw_a, kw_b = _weight(k_weight_ptr, cols, HALF)
    dw_qa = tl.zeros([TOKENS, BLOCK], dtype=tl.float32)
    dw_qb = tl.zeros([TOKENS, BLOCK], dtype=tl.float32)
    dw_ka = tl.zeros([TOKENS, BLOCK], dtype=tl.float32)
    dw_kb = tl.zeros([TOKENS, BLOCK], dtype=tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n_tokens, TOKENS), tl.num_programs(0)):
        tokens = (tile * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
        inside = (tokens < n_tokens)[:, None] & (cols < HALF)[None, :]
        c, s = 1.0, 0.0
        if ROPE:
            c, s = _angles(cos_ptr, sin_ptr, tokens, cols, inside, HALF)
        at = tokens[:, None] * ((HEADS + 2 * KV_HEADS) * D) + cols[None, :]
        q_at = tokens[:, None] * (HEADS * D) + cols[None, :]
        k_at = tokens[:, None] * (KV_HEADS * D) + cols[None, :]
        for head in range(HEADS):
            da, db = _halves(dq_ptr, q_at + head * D, inside, HALF)
            a, b = _halves(qkv_ptr, at + head * D, inside, HALF)
            da, db, dw_a, dw_b = _backward_head(da, db, a, b, qw_a, qw_b, c, s, HALF, EPS, ROPE)
            dw_qa += dw_a
            dw_qb += dw_b
            _store_halves(dqkv_ptr, at + head * D, da, db, inside, HALF)
        for head in range(KV_HEADS):
            da, db = _halves(dk_ptr, k_at + head * D, inside, HALF)
            a, b = _halves(qkv_ptr, at + (HEADS + head) * D, inside, HALF)
            da, db, dw_a, dw_b = _backward_head(da, db, a, b, kw_a, kw_b, c, s, HALF, EPS, ROPE)
            dw_ka += dw_a
            dw_kb += dw_b
            _store_halves(dqkv_ptr, at + (HEADS + head) * D, da, db, inside, HALF)
        for head in range(KV_HEADS):
            da, db = _halves(dv_ptr, k_at + head * D, inside, HALF)
            _store_halves(dqkv_ptr, at + (HEADS + KV_HEADS + head) * D, da, db, inside, HALF)
    left = partial_ptr + tl.program_id(0).to(tl.int64) * (2 * D) + cols
    tl.store(left, tl.sum(dw_qa, axis=0), mask=cols < HALF)
    tl.store(left + HALF, tl.sum(dw_qb, axis=0), mask=cols < HALF)
    tl.store(left + D, tl.sum(dw_ka, axis=0), mask=cols < HALF)
    tl.store(left + D + HALF, tl.sum(dw_kb, axis=0), mask=cols < HALF)


def _constants(head_dim: int, n_heads: int, n_kv_heads: int, eps: float, *, rope: bool) -> dict[str, Any]:
    half = head_dim // 2
    block = next_power_of_two(half)
    return {
        "HEADS": n_heads, "KV_HEADS": n_kv_heads, "HALF": half, "EPS": eps, "ROPE": rope,
        "TOKENS": max(1, 256 * WARPS // block), "BLOCK": block, "num_warps": WARPS,
    }  # fmt: skip


def forward(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qkv (T, (H + 2 Hkv) * D), cos and sin (T, D/2) fp32 or None -> q (T, H, D), k and v (T, Hkv, D)."""
    n_tokens, head_dim = len(qkv), len(q_weight)
    q = torch.empty(n_tokens, n_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    k, v = (torch.empty(n_tokens, n_kv_heads, head_dim, dtype=qkv.dtype, device=qkv.device) for _ in range(2))
    if n_tokens:
        constants = _constants(head_dim, n_heads, n_kv_heads, eps, rope=cos is not None)
        angles = (q_weight, q_weight) if cos is None or sin is None else (cos.contiguous(), sin.contiguous())
        launch(
            qk_norm_rope_forward_kernel, (ceil_div(n_tokens, constants["TOKENS"]),),
            qkv.contiguous(), q_weight.contiguous(), k_weight.contiguous(), *angles, q, k, v, n_tokens,
            **constants, maxnreg=FORWARD_REGISTERS,
        )  # fmt: skip
    return q, k, v


def backward(
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dqkv like qkv, and dw of q and of k as (2, D) fp32."""
    n_tokens, n_heads, head_dim = dq.shape
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if not n_tokens:
        return dqkv, torch.zeros(2, head_dim, dtype=torch.float32, device=qkv.device)
    constants = _constants(head_dim, n_heads, dk.shape[1], eps, rope=cos is not None)
    programs = n_programs(qkv, ceil_div(n_tokens, constants["TOKENS"]), per_multiprocessor=PARTIALS)
    partial = torch.empty(programs, 2, head_dim, dtype=torch.float32, device=qkv.device)
    angles = (q_weight, q_weight) if cos is None or sin is None else (cos.contiguous(), sin.contiguous())
    launch(
        qk_norm_rope_backward_kernel, (programs,),
        dq.contiguous(), dk.contiguous(), dv.contiguous(), qkv.contiguous(), q_weight.contiguous(),
        k_weight.contiguous(), *angles, dqkv, partial, n_tokens,
        **constants,
    )  # fmt: skip
    return dqkv, partial.sum(0)
