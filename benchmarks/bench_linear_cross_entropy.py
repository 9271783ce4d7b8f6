"""linear_cross_entropy: bound by its three matrix products; contenders differ in what else they do and in memory.

Only forward and backward together are compared: some compute their gradients in the forward.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from muomni_kernels import linear_cross_entropy
from torch.nn import functional as F

from benchmarks import baselines, shapes
from benchmarks.case import ROUNDOFF, Case, Inputs
from benchmarks.make import integers, normal

LARGE = 2**27
"""Logits above which the truth is computed in slices."""
SLICE = 1_024


def cases(device: torch.device, dtype: torch.dtype, *, smoke: bool = False) -> Iterator[Case]:
    """Cases, the important ones first."""
    if smoke:
        yield case(device, dtype, shapes.SMOKE_ROWS, 64, 32, model=True)
        yield case(device, dtype, shapes.SMOKE_ROWS, 32, 32, heads=3, model=True)
        return
    seen = set()
    for vocab, width in shapes.MODEL_HEAD:
        rows = 1_024 if vocab == 1_024 else shapes.MODEL_ROWS
        seen.add((rows, vocab, width))
        yield case(device, dtype, rows, vocab, width, model=True)
    yield case(device, dtype, 4_096, 1_024, 256, heads=8, model=True)
    for rows in (16_384, 4_096):
        for vocab in (8_192, 16_384, 32_768):
            for width in (128, 256, 384, 512):
                if (rows, vocab, width) not in seen:
                    yield case(device, dtype, rows, vocab, width, model=False)


def _plain(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if x.ndim == 2:
        return F.cross_entropy(F.linear(x, weight).float(), labels, reduction="sum")
    logits = torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).float()
    losses = F.cross_entropy(logits.transpose(1, 2), labels.T, reduction="none")
    return losses.sum(1)


def _products(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Logits, and the products of the two gradients with something of the logits' shape."""
    if x.ndim == 2:
        z = x @ weight.T
        return z, z @ weight, z.T @ x
    x = x.transpose(0, 1)
    z = torch.bmm(x, weight.transpose(1, 2))
    return z, torch.bmm(z, weight), torch.bmm(z.transpose(1, 2), x)


def _judge(inputs: Inputs, found: tuple[torch.Tensor, ...]) -> str | None:
    """Loss and gradients against fp64, a slice of rows at a time."""
    x, weight, labels = inputs
    wide = weight.double()
    loss, dw, dx = torch.zeros((), dtype=torch.float64, device=x.device), torch.zeros_like(wide), []
    for start in range(0, len(x), SLICE):
        part, known = x[start : start + SLICE].double(), labels[start : start + SLICE]
        z = part @ wide.T
        lse = z.logsumexp(1)
        loss += (lse - z.gather(1, known[:, None])[:, 0]).sum()
        z = (z - lse[:, None]).exp_()
        z[torch.arange(len(z), device=z.device), known] -= 1
        dx.append(z @ wide)
        dw += z.T @ part
    limit = ROUNDOFF[x.dtype]
    for name, value, exact in zip(("loss", "dx", "dw"), found, (loss, torch.cat(dx), dw), strict=True):
        error = float((value.double() - exact).norm() / exact.norm())
        if not error <= limit:
            return f"{name}: relative error {error:.1e} > {limit:.0e}"
    return None


def case(
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    vocab: int,
    width: int,
    *,
    model: bool,
    heads: int = 0,
) -> Case:
    """One shape; heads: 0 for one head, else that many in one call."""

    def make(seed: int) -> Inputs:
        lead = (heads,) if heads else ()
        x = normal(device, dtype, seed, rows, *lead, width)
        weight = normal(device, dtype, seed + 1, *lead, vocab, width, scale=width**-0.5)
        return [x, weight, integers(device, seed + 2, vocab, rows, *lead)]

    def liger(module: Any) -> Any:
        return lambda x, w, y: module.liger_fused_linear_cross_entropy(x, w, y, reduction="sum")

    def quack(module: Any) -> Any:
        return lambda x, w, y: module.chunked_linear_cross_entropy(x, w, y, reduction="sum")

    n_heads = max(1, heads)
    entries = n_heads * vocab * width
    moved = 2 * dtype.itemsize * (rows * n_heads * width + entries) + 8 * rows * n_heads
    others = {} if heads else {**baselines.liger(liger), **baselines.quack("linear_cross_entropy", quack)}
    return Case(
        op="linear_cross_entropy",
        variant=f"{rows}x{f'{heads}x' if heads else ''}{width}->{vocab}",
        shape={"rows": rows, "heads": n_heads, "width": width, "vocab": vocab},
        dtype=dtype,
        make=make,
        n_grads=2,
        contenders={
            **baselines.backends("linear_cross_entropy", lambda x, w, y: linear_cross_entropy(x, w, y)),
            **baselines.compiled(_plain, device=device),
            **others,
        },
        rows=rows * n_heads,
        width=entries,
        n_bytes={"both": moved},
        flops={"both": 6 * rows * entries},
        model=model,
        judge=_judge if not heads and rows * vocab > LARGE else None,
        yardsticks={"three products": _products},
        compared=("both",),
    )


def tiny(device: torch.device, dtype: torch.dtype) -> Case:
    """For host time."""
    return case(device, dtype, 8, 64, 32, model=False)


if __name__ == "__main__":
    from benchmarks import kernels

    sys.exit(kernels.main(ops=("linear_cross_entropy",)))
