"""attention over packed documents: bound by arithmetic, 4 D operations for each query and key it sees, a head."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from muomni_kernels import attention

from benchmarks import baselines, shapes
from benchmarks.case import Case, Inputs
from benchmarks.make import documents, normal

LONGEST = 512
"""Positions of the longest document: max_seq_len."""


def cases(device: torch.device, dtype: torch.dtype, *, smoke: bool = False) -> Iterator[Case]:
    """Cases, the important ones first."""
    if smoke:
        heads = shapes.Heads(n_heads=2, n_kv_heads=1, head_dim=16)
        yield case(device, dtype, 40, heads, longest=16, causal=True, model=True)
        return
    for rows in (shapes.MODEL_ROWS, 4_096):
        for heads in shapes.HEADS:
            model = rows == shapes.MODEL_ROWS and heads in shapes.MODEL_HEADS
            yield case(device, dtype, rows, heads, longest=LONGEST, causal=True, model=model)
    encoder = shapes.Heads(n_heads=6, n_kv_heads=6, head_dim=32)
    yield case(device, dtype, 4_096, encoder, longest=128, causal=False, model=True)


def case(
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    heads: shapes.Heads,
    *,
    longest: int,
    causal: bool,
    model: bool,
) -> Case:
    """One shape."""
    n, m, d = heads.n_heads, heads.n_kv_heads, heads.head_dim
    cu = documents(device, rows, longest)
    lengths = cu.diff().tolist()

    def make(seed: int) -> Inputs:
        return [normal(device, dtype, seed + i, rows, k, d) for i, k in enumerate((n, m, m))]

    def public(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return attention(q, k, v, cu_seqlens=cu, max_seqlen=longest, causal=causal)

    pairs = sum(length * (length + 1) // 2 if causal else length**2 for length in lengths)
    forward = dtype.itemsize * rows * d * (2 * n + 2 * m)
    work = 4 * pairs * n * d
    return Case(
        op="attention",
        variant=f"{rows}x{n}/{m}x{d}, documents of {longest // 4} to {longest}{', causal' if causal else ''}",
        shape={"rows": rows, "n_heads": n, "n_kv_heads": m, "head_dim": d, "longest": longest},
        dtype=dtype,
        make=make,
        n_grads=3,
        contenders=baselines.backends("attention", public),
        rows=rows,
        width=n * d,
        n_bytes={"forward": forward, "backward": 2 * forward, "both": 3 * forward},
        flops={"forward": work, "backward": 5 * work // 2, "both": 7 * work // 2},
        model=model,
    )


def tiny(device: torch.device, dtype: torch.dtype) -> Case:
    """For host time."""
    heads = shapes.Heads(n_heads=2, n_kv_heads=1, head_dim=16)
    return case(device, dtype, 40, heads, longest=16, causal=True, model=False)


if __name__ == "__main__":
    from benchmarks import kernels

    sys.exit(kernels.main(ops=("attention",)))
