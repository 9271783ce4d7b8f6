"""add_rms_norm: 8 bytes an element forward (read x and residual, write y and the sum), 8 backward, bf16."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from muomni_kernels import add_rms_norm, reference

from benchmarks import baselines, shapes
from benchmarks.case import Case, Inputs
from benchmarks.make import normal

EPS = 1e-6


def cases(device: torch.device, dtype: torch.dtype, *, smoke: bool = False) -> Iterator[Case]:
    """Cases, the important ones first."""
    for rows, width, model in [(shapes.SMOKE_ROWS, 64, True)] if smoke else shapes.grid(shapes.MODEL_WIDTHS):
        yield case(device, dtype, rows, width, model=model)


def case(device: torch.device, dtype: torch.dtype, rows: int, width: int, *, model: bool) -> Case:
    """One shape."""

    def make(seed: int) -> Inputs:
        x, residual = (normal(device, dtype, seed + i, rows, width) for i in range(2))
        return [x, residual, normal(device, dtype, seed + 2, width)]

    def plain(
        x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.add_rms_norm(x, residual, weight, EPS)

    each = 4 * dtype.itemsize * rows * width
    return Case(
        op="add_rms_norm",
        variant=f"{rows}x{width}",
        shape={"rows": rows, "width": width},
        dtype=dtype,
        make=make,
        n_grads=3,
        contenders={
            **baselines.backends("add_rms_norm", lambda x, r, w: add_rms_norm(x, r, w, eps=EPS)),
            **baselines.compiled(plain, device=device),
            **baselines.liger(
                lambda m: lambda x, r, w: m.liger_fused_add_rms_norm(x, r, w, EPS, in_place=False)
            ),
            **baselines.quack(
                "rmsnorm", lambda m: lambda x, r, w: m.rmsnorm(x, w, residual=r, eps=EPS, prenorm=True)
            ),
        },
        rows=rows,
        width=width,
        # Backward: dy, the residual's gradient and the sum are read, one gradient serves both inputs.
        n_bytes={"forward": each, "backward": each, "both": 2 * each},
        model=model,
    )


def tiny(device: torch.device, dtype: torch.dtype) -> Case:
    """For host time."""
    return case(device, dtype, 8, 64, model=False)


if __name__ == "__main__":
    from benchmarks import kernels

    sys.exit(kernels.main(ops=("add_rms_norm",)))
