"""Spoken questions for the omni turn, synthesised in five voices and labelled synthetic.

No recording of a person asking about a picture is to be had under a licence that allows its
redistribution; see docs/data.md.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from muomni.data.sources.asterisk import SAMPLE_RATE, trim
from muomni.data.sources.fetch import Package, build_tool, fetch

HIBARI = Package(
    registry="pypi",
    name="hibari-tts",
    version="0.2.1",
    sha256="49f2abbbe451c988e7448b5afa08c8a56410535ebb855c0e7d174275df5ca1f3",
    licence="Apache-2.0",
    attribution="hibari, Copyright 2026 Maureese Williams; voice 'heart', distilled from Kokoro-82M (hexgrad)",
    gives="synthetic spoken questions (questions.tar)",
)
FLITE = Package(
    registry="debian",
    name="flite",
    version="2.2-5",
    sha256="f4ce03470bf9974c2cb9cacd981e6be29339ef4c97cf994dd6fa3f90e6544db9",
    licence="BSD-like (CMU)",
    attribution="Flite, Language Technologies Institute, Carnegie Mellon University",
    gives="synthetic spoken questions (questions.tar)",
)
FLITE_VOICES = Package(
    registry="debian",
    name="libflite1",
    version="2.2-5",
    sha256="bfa8c591f1b47730b30b372ec38e02918a1c9795eada67684e1746390ad2f061",
    licence="BSD-like (CMU)",
    attribution="Flite, Language Technologies Institute, Carnegie Mellon University",
    gives="voices slt, rms, awb and kal16 of the synthetic questions (questions.tar)",
)
VOICES = ("hibari", "slt", "rms", "awb", "kal16")

# (wording, split): a wording stands in one split, so a held-out question was never heard.
WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "name": (
        ("what is this", "train"),
        ("what do you see", "train"),
        ("what does the picture show", "train"),
        ("name this picture", "train"),
        ("tell me what this is", "train"),
        ("what can you see in this picture", "train"),
        ("can you name this", "train"),
        ("what am i looking at", "train"),
        ("please name the picture", "validation"),
        ("what is in this picture", "test"),
        ("tell me what you see", "test"),
    ),
    "group": (
        ("what kind of thing is this", "train"),
        ("which kind is it", "train"),
        ("what group does this belong to", "train"),
        ("which group is this", "train"),
        ("what category is it", "train"),
        ("tell me the category", "train"),
        ("what sort of thing is it", "train"),
        ("which category does this belong to", "train"),
        ("what kind is this", "validation"),
        ("which group does it belong to", "test"),
        ("what category is this", "test"),
    ),
}


def _speak_flite(text: str, voice: str, cache: Path) -> np.ndarray:
    program = next(fetch(FLITE, cache).rglob("bin/flite"))
    library = next(fetch(FLITE_VOICES, cache).rglob("libflite.so.1")).parent
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "question.wav"
        subprocess.run(
            [str(program), "-voice", voice, "-t", text, "-o", str(path)],
            check=True,
            env={**os.environ, "LD_LIBRARY_PATH": str(library)},
        )
        waveform, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(waveform, rate, SAMPLE_RATE)


def items(cache: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Records and waveforms: every wording in every voice."""
    build_tool("onnxruntime")
    hibari: Any = build_tool("hibari", folder=fetch(HIBARI, cache))
    narrator = hibari.Hibari()
    found: list[tuple[dict[str, Any], np.ndarray]] = []
    for kind, wordings in WORDINGS.items():
        for wording, split in wordings:
            for voice in VOICES:
                if voice == "hibari":
                    spoken = np.asarray(narrator(f"{wording}?", seed=0), dtype=np.float32)
                    waveform = soxr.resample(spoken, hibari.SAMPLE_RATE, SAMPLE_RATE)
                else:
                    waveform = _speak_flite(f"{wording}?", voice, cache)
                waveform = trim(waveform) * (0.5 / np.abs(waveform).max())
                record = {
                    "id": f"question/{kind}/{wording.replace(' ', '-')}/{voice}",
                    "text": wording,
                    "kind": kind,
                    "voice": voice,
                    "synthetic": True,
                    "split": split,
                    "n_samples": len(waveform),
                }
                found.append((record, waveform.astype(np.float32)))
    return found
