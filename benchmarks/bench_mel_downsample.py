"""mel_downsample of clips one after another, 100 Hz -> 12.5 Hz: 4 bytes an element each way in bf16 for "stack"."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from muomni_kernels import mel_downsample

from benchmarks import baselines
from benchmarks.case import Case, Inputs
from benchmarks.make import documents, normal

FACTOR, MELS = 8, 128
LONGEST = 1_024
"""Frames of the longest clip: 10.24 s."""


def cases(device: torch.device, dtype: torch.dtype, *, smoke: bool = False) -> Iterator[Case]:
    """Cases, the important ones first."""
    if smoke:
        yield case(device, dtype, 50, "mean", longest=20, model=True)
        return
    for frames in (32_768, 4_096, 262_144):
        for mode in ("stack", "mean", "max"):
            yield case(device, dtype, frames, mode, longest=LONGEST, model=frames == 32_768)


def _index(cu: torch.Tensor, n_rows: int) -> torch.Tensor:
    """(n_rows, FACTOR) frames of every row, -1 where a clip has ended."""
    counts = cu.diff().long()
    rows = -(-counts // FACTOR)
    clip = torch.repeat_interleave(torch.arange(len(counts), device=cu.device), rows, output_size=n_rows)
    begin = torch.cumsum(rows, 0) - rows
    group = torch.arange(n_rows, device=cu.device) - begin[clip]
    within = group[:, None] * FACTOR + torch.arange(FACTOR, device=cu.device)
    return torch.where(within < counts[clip][:, None], cu[:-1].long()[clip][:, None] + within, -1)


def case(
    device: torch.device, dtype: torch.dtype, frames: int, mode: str, *, longest: int, model: bool
) -> Case:
    """One shape."""
    cu = documents(device, frames, longest)
    n_rows = int((-(-cu.diff() // FACTOR)).sum())
    index = _index(cu, n_rows)

    def make(seed: int) -> Inputs:
        return [normal(device, dtype, seed, frames, MELS)]

    def public(x: torch.Tensor) -> torch.Tensor:
        return mel_downsample(x, factor=FACTOR, mode=mode, cu_frames=cu, n_rows=n_rows)

    def plain(x: torch.Tensor) -> torch.Tensor:
        known = (index >= 0)[..., None]
        groups = x[index.clamp(min=0)]
        if mode == "stack":
            return torch.where(known, groups, 0.0).flatten(1)
        if mode == "max":
            return torch.where(known, groups, float("-inf")).amax(1)
        wide = torch.where(known, groups, 0.0).to(torch.promote_types(x.dtype, torch.float32)).sum(1)
        return (wide / known.sum(1)).to(x.dtype)

    columns = MELS * (FACTOR if mode == "stack" else 1)
    each = dtype.itemsize * (frames * MELS + n_rows * columns)
    return Case(
        op="mel_downsample",
        variant=f"{frames}x{MELS} {mode}",
        shape={"frames": frames, "mels": MELS, "factor": FACTOR},
        dtype=dtype,
        make=make,
        n_grads=1,
        contenders={
            **baselines.backends("mel_downsample", public),
            **baselines.compiled(plain, device=device),
        },
        rows=frames,
        width=MELS,
        n_bytes={"forward": each, "backward": each, "both": 2 * each},
        model=model,
    )


def tiny(device: torch.device, dtype: torch.dtype) -> Case:
    """For host time."""
    return case(device, dtype, 50, "stack", longest=20, model=False)


if __name__ == "__main__":
    from benchmarks import kernels

    sys.exit(kernels.main(ops=("mel_downsample",)))
