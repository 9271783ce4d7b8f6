"""qk_norm_rope: split, QK-norm and rotation of packed q, k and v; 4 bytes an element forward, 6 backward, bf16."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from muomni_kernels import qk_norm_rope, reference

from benchmarks import baselines, shapes
from benchmarks.case import Case, Inputs
from benchmarks.make import angles, normal

EPS = 1e-6


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


def _liger(heads: shapes.Heads) -> Callable[[Any], Callable[..., Any]]:
    """Liger has no such op: its RMSNorm on the heads of q and k, then its rotary embedding."""
    n, m, d = heads.n_heads, heads.n_kv_heads, heads.head_dim

    def build(module: Any) -> Callable[..., Any]:
        norm, turn = module.liger_rms_norm, module.liger_rope

        def call(
            qkv: torch.Tensor,
            q_weight: torch.Tensor,
            k_weight: torch.Tensor,
            cos: torch.Tensor,
            sin: torch.Tensor,
        ) -> tuple[torch.Tensor, ...]:
            q, k, v = qkv.view(qkv.shape[0], -1, d).split([n, m, m], dim=1)
            q = norm(q.contiguous(), q_weight, EPS, in_place=False)
            k = norm(k.contiguous(), k_weight, EPS, in_place=False)
            tables = (torch.cat([t, t], dim=-1)[None].to(qkv.dtype) for t in (cos, sin))
            q, k = turn(q.transpose(0, 1)[None], k.transpose(0, 1)[None], *tables)
            return q[0].transpose(0, 1), k[0].transpose(0, 1), v

        return call

    return build


def case(device: torch.device, dtype: torch.dtype, rows: int, heads: shapes.Heads, *, model: bool) -> Case:
    """One shape."""
    n, m, d = heads.n_heads, heads.n_kv_heads, heads.head_dim

    def make(seed: int) -> Inputs:
        weights = [normal(device, dtype, seed + i, d) for i in (1, 2)]
        return [normal(device, dtype, seed, rows, heads.packed), *weights, *angles(device, rows, d // 2)]

    def public(
        qkv: torch.Tensor, q_w: torch.Tensor, k_w: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> Any:
        return qk_norm_rope(qkv, q_w, k_w, cos, sin, n_heads=n, n_kv_heads=m, eps=EPS)

    def plain(
        qkv: torch.Tensor, q_w: torch.Tensor, k_w: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> Any:
        return reference.qk_norm_rope(qkv, q_w, k_w, cos, sin, n, m, EPS)

    element = dtype.itemsize * rows * heads.packed
    tables = 4 * rows * d
    forward, backward = 2 * element + tables, 3 * element + tables
    return Case(
        op="qk_norm_rope",
        variant=f"{rows}x{n}/{m}x{d}",
        shape={"rows": rows, "n_heads": n, "n_kv_heads": m, "head_dim": d},
        dtype=dtype,
        make=make,
        n_grads=3,
        contenders={
            **baselines.backends("qk_norm_rope", public),
            **baselines.compiled(plain, device=device),
            **baselines.liger(_liger(heads)),
        },
        rows=rows,
        width=heads.packed,
        n_bytes={"forward": forward, "backward": backward, "both": forward + backward},
        model=model,
    )


def tiny(device: torch.device, dtype: torch.dtype) -> Case:
    """For host time."""
    return case(device, dtype, 8, shapes.Heads(n_heads=2, n_kv_heads=1, head_dim=32), model=False)


if __name__ == "__main__":
    from benchmarks import kernels

    sys.exit(kernels.main(ops=("qk_norm_rope",)))
