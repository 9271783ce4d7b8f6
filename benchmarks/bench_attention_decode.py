"""attention_decode, one new query a row over a preallocated cache: bound by reading the keys and values that exist."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from muomni_kernels import attention_decode

from benchmarks import baselines, shapes
from benchmarks.case import Case, Inputs
from benchmarks.make import integers, normal

CACHE = 512
"""Positions of a cache: max_seq_len."""


def cases(device: torch.device, dtype: torch.dtype, *, smoke: bool = False) -> Iterator[Case]:
    """Cases, the important ones first."""
    if smoke:
        yield case(device, dtype, 3, shapes.Heads(n_heads=2, n_kv_heads=1, head_dim=16), cache=16, model=True)
        return
    for batch in (1, 8, 64):
        for heads in shapes.MODEL_HEADS:
            yield case(device, dtype, batch, heads, cache=CACHE, model=batch == 1)


def case(
    device: torch.device, dtype: torch.dtype, batch: int, heads: shapes.Heads, *, cache: int, model: bool
) -> Case:
    """One shape."""
    n, m, d = heads.n_heads, heads.n_kv_heads, heads.head_dim

    def make(seed: int) -> Inputs:
        caches = [normal(device, dtype, seed + i, batch, cache, m, d) for i in (1, 2)]
        lengths = integers(device, seed + 3, cache, batch) + 1
        return [normal(device, dtype, seed, batch, 1, n, d), *caches, lengths]

    def public(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor) -> Any:
        return attention_decode(q, k, v, lengths=lengths)

    # Lengths are uniform: half of the cache on average.
    moved = dtype.itemsize * batch * (2 * n * d + cache * m * d)
    return Case(
        op="attention_decode",
        variant=f"{batch}x{n}/{m}x{d}, cache of {cache}",
        shape={"batch": batch, "n_heads": n, "n_kv_heads": m, "head_dim": d, "cache": cache},
        dtype=dtype,
        make=make,
        n_grads=0,
        contenders=baselines.backends("attention_decode", public),
        rows=batch,
        width=n * d,
        n_bytes={"forward": moved},
        model=model,
    )


def tiny(device: torch.device, dtype: torch.dtype) -> Case:
    """For host time."""
    return case(device, dtype, 2, shapes.Heads(n_heads=2, n_kv_heads=1, head_dim=16), cache=16, model=False)


if __name__ == "__main__":
    from benchmarks import kernels

    sys.exit(kernels.main(ops=("attention_decode",)))
