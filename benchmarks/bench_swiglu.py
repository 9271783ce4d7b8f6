"""swiglu on packed gate and up: 6 bytes an ff element forward, 10 backward, bf16."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from muomni_kernels import reference, swiglu

from benchmarks import baselines, shapes
from benchmarks.case import Case, Inputs
from benchmarks.make import normal

ODD_FF = 682
"""8/3 of 256, as a model has that does not round d_ff: falls back to narrow accesses elsewhere."""


def cases(device: torch.device, dtype: torch.dtype, *, smoke: bool = False) -> Iterator[Case]:
    """Cases, the important ones first."""
    widths = tuple(sorted({*shapes.WIDTHS, 1_536, 2_048, ODD_FF}))
    for rows, d_ff, model in (
        [(shapes.SMOKE_ROWS, 64, True)] if smoke else shapes.grid(shapes.MODEL_FF, widths)
    ):
        yield case(device, dtype, rows, d_ff, model=model)


def case(device: torch.device, dtype: torch.dtype, rows: int, d_ff: int, *, model: bool) -> Case:
    """One shape."""

    def make(seed: int) -> Inputs:
        return [normal(device, dtype, seed, rows, 2 * d_ff)]

    element = dtype.itemsize * rows * d_ff
    return Case(
        op="swiglu",
        variant=f"{rows}x{d_ff}",
        shape={"rows": rows, "d_ff": d_ff},
        dtype=dtype,
        make=make,
        n_grads=1,
        contenders={
            **baselines.backends("swiglu", swiglu),
            **baselines.compiled(reference.swiglu, device=device),
            **baselines.liger(lambda m: lambda x: m.liger_swiglu(*x.chunk(2, dim=-1))),
        },
        rows=rows,
        width=2 * d_ff,
        n_bytes={"forward": 3 * element, "backward": 5 * element, "both": 8 * element},
        model=model,
    )


def tiny(device: torch.device, dtype: torch.dtype) -> Case:
    """For host time."""
    return case(device, dtype, 8, 64, model=False)


if __name__ == "__main__":
    from benchmarks import kernels

    sys.exit(kernels.main(ops=("swiglu",)))
