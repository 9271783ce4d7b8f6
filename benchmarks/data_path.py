"""What preparing a clip costs beside log_mel: conversion, gain, dither, masks, normalising, resampling, decoding.

python -m benchmarks.data_path: microseconds a clip of 10 s on one thread over 64 clips, each step in its
straightforward NumPy or torch form. Median (least) of interleaved rounds.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import soundfile
import soxr
import torch
from muomni_kernels import log_mel, log_mel_downsample

N_CLIPS, SECONDS, RATE = 64, 10, 16_000
Step = Callable[[int], object]


def speech_like(rng: np.random.Generator, n: int) -> np.ndarray:
    """Noise of a falling spectrum that swells four times a second, int16: it compresses about as speech does."""
    noise = np.cumsum(rng.standard_normal(n, np.float32))
    noise -= np.convolve(noise, np.full(64, 1 / 64, np.float32), "same")
    swell = np.sin(np.arange(n, dtype=np.float32) * np.float32(np.pi * 4 / RATE)) ** 2
    return (noise / np.abs(noise).max() * swell * 20_000).astype(np.int16)


def encoded(wave: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format=kind, subtype="PCM_16")
    return file.getvalue()


def spec_augment(frames: np.ndarray, rng: np.random.Generator) -> None:
    """Two masks over time of up to 100 frames and two over frequency of up to 27 bands, in place."""
    n_frames, n_mels = frames.shape
    fill = frames.mean()
    for _ in range(2):
        width, band = int(rng.integers(100)), int(rng.integers(27))
        start, first = int(rng.integers(n_frames - width)), int(rng.integers(n_mels - band))
        frames[start : start + width] = fill
        frames[:, first : first + band] = fill


def steps() -> dict[str, Step]:
    rng, n = np.random.default_rng(0), SECONDS * RATE
    clips = [speech_like(rng, n) for _ in range(N_CLIPS)]
    floats = [clip.astype(np.float32) / np.float32(32_768) for clip in clips]
    tensors = [torch.from_numpy(clip) for clip in floats]
    mels = [log_mel(clip) for clip in clips]
    arrays = [mel.numpy() for mel in mels]
    out, rows = torch.empty_like(mels[0]), log_mel_downsample(clips[0], dtype=torch.bfloat16)
    high = {rate: rng.standard_normal(SECONDS * rate, np.float32) for rate in (24_000, 44_100, 48_000)}
    wavs, flacs = ([encoded(clip, kind) for clip in clips] for kind in ("WAV", "FLAC"))
    generator = torch.Generator().manual_seed(0)

    def decode(files: list[bytes], dtype: Literal["int16", "float32"]) -> Step:
        return lambda i: soundfile.read(io.BytesIO(files[i]), dtype=dtype)

    def resample(rate: int, quality: str) -> Step:
        return lambda _: soxr.resample(high[rate], rate, RATE, quality)

    return {
        "log_mel of int16": lambda i: log_mel(clips[i], out=out),
        "log_mel of float32": lambda i: log_mel(floats[i], out=out),
        "log_mel_downsample, bfloat16": lambda i: log_mel_downsample(
            clips[i], dtype=torch.bfloat16, out=rows
        ),
        "int16 to float32, numpy": lambda i: clips[i].astype(np.float32) * np.float32(1 / 32_768),
        "gain in place, numpy": lambda i: np.multiply(floats[i], np.float32(0.999), out=floats[i]),
        "dither, numpy": lambda i: floats[i] + np.float32(1e-5) * rng.standard_normal(n, dtype=np.float32),
        "dither, torch": lambda i: tensors[i] + 1e-5 * torch.randn(n, generator=generator),
        "uniform dither, numpy": lambda i: (
            floats[i] + np.float32(1e-5) * (rng.random(n, dtype=np.float32) - np.float32(0.5))
        ),
        "normalise waveform, numpy": lambda i: (floats[i] - floats[i].mean()) / (floats[i].std() + 1e-7),
        "normalise each band, torch": lambda i: (mels[i] - mels[i].mean(0)) / (mels[i].std(0) + 1e-5),
        "SpecAugment, numpy": lambda i: spec_augment(arrays[i], rng),
        "decode wav as int16": decode(wavs, "int16"),
        "decode wav as float32": decode(wavs, "float32"),
        "decode flac as int16": decode(flacs, "int16"),
        "decode flac as float32": decode(flacs, "float32"),
        "resample 24 kHz, soxr HQ": resample(24_000, "HQ"),
        "resample 44.1 kHz, soxr HQ": resample(44_100, "HQ"),
        "resample 48 kHz, soxr HQ": resample(48_000, "HQ"),
        "resample 48 kHz, soxr MQ": resample(48_000, "MQ"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    todo = steps()
    for _ in range(rounds + 1):
        for name, step in todo.items():
            start = time.perf_counter()
            for clip in range(N_CLIPS):
                step(clip)
            found.setdefault(name, []).append((time.perf_counter() - start) / N_CLIPS * 1e6)
    print(
        f"{platform.machine()}, numpy {np.__version__}, torch {torch.__version__}, soxr {soxr.__version__}, "
        f"soundfile {soundfile.__version__}, {rounds} rounds"
    )
    for name, times in found.items():
        # The first round warms up.
        print(f"{name:32} {statistics.median(times[1:]):8.0f} us ({min(times[1:]):.0f})")


if __name__ == "__main__":
    main()
