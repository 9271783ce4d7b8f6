"""rms_norm: 4 bytes an element forward (read x, write y), 6 backward (read dy and x, write dx), bf16."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from muomni_kernels import reference, rms_norm
from torch.nn import functional as F

from benchmarks import baselines, shapes
from benchmarks.case import Case, Contender, Inputs
from benchmarks.make import normal

EPS = 1e-6


def cases(device: torch.device, dtype: torch.dtype, *, smoke: bool = False) -> Iterator[Case]:
    """Cases, the important ones first."""
    for rows, width, model in [(shapes.SMOKE_ROWS, 64, True)] if smoke else shapes.grid(shapes.MODEL_WIDTHS):
        yield case(device, dtype, rows, width, model=model)


def case(device: torch.device, dtype: torch.dtype, rows: int, width: int, *, model: bool) -> Case:
    """One shape."""

    def make(seed: int) -> Inputs:
        return [normal(device, dtype, seed, rows, width), normal(device, dtype, seed + 1, width)]

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return reference.rms_norm(x, weight, EPS)

    element = dtype.itemsize
    forward, backward = 2 * element * rows * width, 3 * element * rows * width
    return Case(
        op="rms_norm",
        variant=f"{rows}x{width}",
        shape={"rows": rows, "width": width},
        dtype=dtype,
        make=make,
        n_grads=2,
        contenders={
            **baselines.backends("rms_norm", lambda x, weight: rms_norm(x, weight, eps=EPS)),
            "torch": lambda: Contender(call=lambda x, weight: F.rms_norm(x, (width,), weight, EPS)),
            **baselines.compiled(plain, device=device),
            **baselines.liger(lambda m: lambda x, w: m.liger_rms_norm(x, w, EPS, in_place=False)),
            **baselines.quack("rmsnorm", lambda m: lambda x, w: m.rmsnorm(x, w, eps=EPS)),
        },
        rows=rows,
        width=width,
        n_bytes={"forward": forward, "backward": backward, "both": forward + backward},
        model=model,
    )


def tiny(device: torch.device, dtype: torch.dtype) -> Case:
    """For host time."""
    return case(device, dtype, 8, 64, model=False)


if __name__ == "__main__":
    from benchmarks import kernels

    sys.exit(kernels.main(ops=("rms_norm",)))
