"""vq_nearest, all residual levels: bound by the distances, 2 N K S D operations in fp32."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from muomni_kernels import vq_nearest

from benchmarks import baselines
from benchmarks.case import Case, Inputs
from benchmarks.make import normal

LEVELS, WORDS = 8, 1_024
"""Codebooks and entries of every size's codec."""


def cases(device: torch.device, dtype: torch.dtype, *, smoke: bool = False) -> Iterator[Case]:
    """Cases, the important ones first; always fp32."""
    if smoke:
        yield case(device, 24, 16, levels=2, words=32, model=True)
        return
    for rows in (4_096, 16_384, 65_536):
        for width in (128, 64, 192):
            yield case(device, rows, width, levels=LEVELS, words=WORDS, model=rows == 4_096)


def _plain(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    residual, codes = z, []
    for words in codebooks.unbind(0):
        scores = torch.addmm(words.square().sum(1), residual, words.T, alpha=-2.0)
        codes.append(scores.argmin(1))
        residual = residual - words[codes[-1]]
    return torch.stack(codes, 1), z - residual


def _cdist(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    residual, codes = z, []
    for words in codebooks.unbind(0):
        codes.append(torch.cdist(residual, words).argmin(1))
        residual = residual - words[codes[-1]]
    return torch.stack(codes, 1), z - residual


def _products(z: torch.Tensor, codebooks: torch.Tensor) -> list[torch.Tensor]:
    return [z @ words.T for words in codebooks.unbind(0)]


def judge(inputs: Inputs, found: tuple[torch.Tensor, ...]) -> str | None:
    """Every level's word is nearest to what the levels before it left, up to 1e-5 of the distance.

    The words are read off the quantised sum's own codes, so a tie may fall either way.
    """
    z, codebooks = inputs[0].double(), inputs[1].double()
    codes, quantised = found
    residual = z
    for level, words in enumerate(codebooks.unbind(0)):
        chosen = words[codes[:, level]]
        distance = (residual - chosen).square().sum(1)
        nearest = (
            torch.cdist(residual, words, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.square()
        )
        scale = residual.square().sum(1) + words.square().sum(1).max()
        if not bool((distance <= nearest + 1e-5 * scale).all()):
            return f"level {level}: a word that is not the nearest"
        residual = residual - chosen
    error = float((quantised.double() - (z - residual)).abs().max() / z.abs().max())
    return None if error <= 1e-5 else f"quantised: relative error {error:.1e} > 1e-05"


def case(device: torch.device, rows: int, width: int, *, levels: int, words: int, model: bool) -> Case:
    """One shape."""
    from benchmarks.baselines import Contender

    def make(seed: int) -> Inputs:
        scales = 0.7 ** torch.arange(levels, device=device)
        books = normal(device, torch.float32, seed + 1, levels, words, width) * scales[:, None, None]
        return [normal(device, torch.float32, seed, rows, width), books]

    def public(z: torch.Tensor, codebooks: torch.Tensor) -> Any:
        return vq_nearest(z, codebooks)

    moved = 4 * rows * width * 2 + 8 * rows * levels + 4 * levels * words * width
    return Case(
        op="vq_nearest",
        variant=f"{rows}x{width}, {levels} levels of {words}",
        shape={"rows": rows, "width": width, "levels": levels, "words": words},
        dtype=torch.float32,
        make=make,
        n_grads=0,
        contenders={
            **baselines.backends("vq_nearest", public),
            "cdist": lambda: Contender(call=_cdist),
            **baselines.compiled(_plain, device=device),
        },
        rows=rows,
        width=levels * words * width,
        n_bytes={"forward": moved},
        flops={"forward": 2 * rows * levels * words * width},
        model=model,
        judge=judge,
        yardsticks={"distance products": _products},
    )


def tiny(device: torch.device, dtype: torch.dtype) -> Case:
    """For host time."""
    return case(device, 8, 16, levels=2, words=32, model=False)


if __name__ == "__main__":
    from benchmarks import kernels

    sys.exit(kernels.main(ops=("vq_nearest",)))
