"""rope: 4 bytes an element each way, and the angles, which 2 heads or more share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from muomni_kernels import reference, rope

from benchmarks import baselines, shapes
from benchmarks.case import Case, Inputs
from benchmarks.make import angles, normal


def cases(device: torch.device, dtype: torch.dtype, *, smoke: bool = False) -> Iterator[Case]:
    """Cases, the important ones first."""
    if smoke:
        yield case(
            device, dtype, shapes.SMOKE_ROWS, shapes.Heads(n_heads=2, n_kv_heads=1, head_dim=32), model=True
        )
        return
    for rows in (shapes.MODEL_ROWS, 4_096, 65_536, 1_024, 262_144):
        for heads in shapes.HEADS:
            model = heads in shapes.MODEL_HEADS and rows == shapes.MODEL_ROWS
            yield case(device, dtype, rows, heads, model=model)


def _flash_rotary(module: Any) -> Callable[..., torch.Tensor]:
    return lambda x, cos, sin: module.apply_rotary_emb(x[None], cos.to(x.dtype), sin.to(x.dtype))[0]


def case(device: torch.device, dtype: torch.dtype, rows: int, heads: shapes.Heads, *, model: bool) -> Case:
    """One shape: the queries of a layer."""
    n_heads, head_dim = heads.n_heads, heads.head_dim

    def make(seed: int) -> Inputs:
        return [normal(device, dtype, seed, rows, n_heads, head_dim), *angles(device, rows, head_dim // 2)]

    each = 2 * dtype.itemsize * rows * n_heads * head_dim + 4 * rows * head_dim
    return Case(
        op="rope",
        variant=f"{rows}x{n_heads}x{head_dim}",
        shape={"rows": rows, "n_heads": n_heads, "head_dim": head_dim},
        dtype=dtype,
        make=make,
        n_grads=1,
        contenders={
            **baselines.backends("rope", rope),
            **baselines.compiled(reference.rope, device=device),
            "flash-attn": baselines.foreign("flash_attn.layers.rotary", _flash_rotary),
        },
        rows=rows,
        width=n_heads * head_dim,
        n_bytes={"forward": each, "backward": each, "both": 2 * each},
        model=model,
    )


def tiny(device: torch.device, dtype: torch.dtype) -> Case:
    """For host time."""
    return case(device, dtype, 8, shapes.Heads(n_heads=2, n_kv_heads=1, head_dim=32), model=False)


if __name__ == "__main__":
    from benchmarks import kernels

    sys.exit(kernels.main(ops=("rope",)))
