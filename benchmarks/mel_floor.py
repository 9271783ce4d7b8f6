"""The floor of the audio front end: operations and bytes a frame needs, how fast this core does them; and the error.

Operations are counted from the algorithm (docs/audio.md), one for every addition, product or multiply-add on a number
of a frame. Loads, stores and shuffles are left out: other ports do them, so the floor is a little too low. The rate is
that of a large matrix product, the densest multiply-adds at hand, and bytes go at the rate at which a sum reads memory.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from muomni_kernels import log_mel, mel_filterbank, mel_reference, use_backend
from muomni_kernels.mel_reference import MelSpec

Row = dict[str, Any]

N_MELS, HOP, POOL = 128, 160, 8
SIZE = 1_024
"""Rows and columns of the matrix product."""
PRODUCT, READ = "matrix product", "read once (sum)"
WHISPER: dict[str, Any] = {"padding": "reflect", "log": "whisper"}

REAL_DFT5 = 4 + 2 + 4 * 2
"""Sums and differences of the pairs, bin 0, and two real and two imaginary parts of two multiply-adds each."""
DFT5 = 4 * 2 + 2 * 2 + 4 * 4 + 4 * 2
"""The same of complex numbers, and the four sums that put bins together."""
DFT4 = 8 * 2
REAL_DFT20 = 5 * 6 + 2 * REAL_DFT5 + DFT5
"""20 = 4 x 5: five real sums of four, two real and one complex of five."""
DFT20 = 5 * DFT4 + 4 * DFT5
LOGARITHM = 10
"""By table: interval, mantissa, exponent, two look-ups, five multiply-adds."""


def operations(*, pooled: bool) -> dict[str, int]:
    """Of one frame of 400 samples with 128 bands, by part; pooled: its share of the mean of eight logarithms."""
    parts = {
        "window": 400,
        "inner sums": 20 * REAL_DFT20,
        # The first of the 20 is not turned; nine bins are complex, the last is real.
        "twiddles": 19 * (9 * 4 + 2),
        "outer sums": REAL_DFT20 + 10 * DFT20,
        "power": 2 * 201,
        "bands": int(mel_filterbank(n_mels=N_MELS, n_fft=400, sample_rate=16_000).count_nonzero()),
    }
    if not pooled:
        return parts | {"logarithm": N_MELS * (1 + LOGARITHM)}
    # A band: floor, mantissa, exponent, and of every group of eight seven joins of both and one logarithm.
    return parts | {"logarithm": N_MELS * (3 * POOL + 2 * (POOL - 1) + LOGARITHM + 2) // POOL}


def bytes_moved(*, pooled: bool) -> int:
    """Of one frame: float32 samples read once, float32 bands written once."""
    return 4 * (HOP + (N_MELS // POOL if pooled else N_MELS))


def floor(rows: list[Row]) -> list[Row]:
    """Nanoseconds a frame that each op of the case "floor" takes and could take, from the rows of that case."""
    times = {r["contender"]: r for r in rows if r["case"] == "floor"}
    if PRODUCT not in times or READ not in times:
        return []
    rate = SIZE**3 / times[PRODUCT]["wall_ms_min"] / 1e6
    read = times[READ]["bytes"] / times[READ]["wall_ms_min"] / 1e6
    found = []
    for name, row in times.items():
        if name in (PRODUCT, READ):
            continue
        pooled = "downsample" in name
        n, moved = sum(operations(pooled=pooled).values()), bytes_moved(pooled=pooled)
        found.append({
            "contender": name, "operations": n, "bytes": moved, "rate": rate, "read": read,
            "ns": row["wall_ms_min"] * 1e6 / row["n_frames"], "ns_operations": n / rate, "ns_bytes": moved / read,
        })  # fmt: skip
    return found


def errors(kinds: dict[str, list[torch.Tensor]]) -> list[Row]:
    """Largest difference from fp64 in Whisper's scale, ours and plain PyTorch's fp32, for each kind of clips.

    The tables (window, filters) are fp32 on both sides: what is measured is the arithmetic.
    """
    spec = MelSpec(
        sample_rate=16_000, n_fft=400, win_length=400, hop_length=HOP, n_mels=N_MELS, f_min=0.0, f_max=8_000.0,
        scale="slaney", floor=1e-10, **WHISPER,
    )  # fmt: skip
    rows = []
    for kind, clips in kinds.items():
        for name, backend in (("log_mel", None), ("fp32 in PyTorch", "reference")):
            with use_backend("log_mel", backend) if backend else nullcontext():
                found = [log_mel(wave, **WHISPER) for wave in clips]
            exact = (mel_reference.log_mel(wave.double(), spec) for wave in clips)
            error = max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True))
            rows.append({"case": "accuracy", "contender": name, "clip": kind, "max_error": error})
    return rows
