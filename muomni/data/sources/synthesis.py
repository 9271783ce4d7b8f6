"""Synthetic speech, labelled so: sentences of conversations and questions, in the voices of hibari and flite."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from muomni.data.items import SAMPLE_RATE, Split
from muomni.data.media import MediaError
from muomni.data.sources import chitchat
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.asterisk import spoken_form
from muomni.data.sources.fetch import Package, build_tool, fetch
from muomni.data.sources.sound import encode_flac, levelled, trim
from muomni.data.splits import normalised, split_of

HIBARI = Package(
    registry="pypi",
    name="hibari-tts",
    version="0.2.1",
    sha256="49f2abbbe451c988e7448b5afa08c8a56410535ebb855c0e7d174275df5ca1f3",
    licence="Apache-2.0",
    attribution="hibari, Copyright 2026 Maureese Williams; voice 'heart', distilled from Kokoro-82M (hexgrad)",
    gives="synthetic spoken questions (questions.tar)",
    n_bytes=14_032_178,
)
FLITE = Package(
    registry="debian",
    name="flite",
    version="2.2-5",
    sha256="f4ce03470bf9974c2cb9cacd981e6be29339ef4c97cf994dd6fa3f90e6544db9",
    licence="BSD-like (CMU)",
    attribution="Flite, Language Technologies Institute, Carnegie Mellon University",
    gives="synthetic spoken questions (questions.tar)",
    n_bytes=252_784,
)
FLITE_VOICES = Package(
    registry="debian",
    name="libflite1",
    version="2.2-5",
    sha256="bfa8c591f1b47730b30b372ec38e02918a1c9795eada67684e1746390ad2f061",
    licence="BSD-like (CMU)",
    attribution="Flite, Language Technologies Institute, Carnegie Mellon University",
    gives="voices slt, rms, awb and kal16 of the synthetic questions (questions.tar)",
    n_bytes=12_823_776,
)
FLITE_NAMES = ("slt", "rms", "awb", "kal16")
VOICES = ("hibari", *FLITE_NAMES)
WORDS_PER_SECOND = 3.3
"""Of conversational sentences in these voices: sizes a set of so many hours."""
MIN_WORDS, MAX_WORDS = 3, 22
"""Of a sentence: longer ones would not fit 10.24 s."""

# Shouting, chat shorthand and mixtures of digits are read aloud in ways the writing does not tell.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z' ,-]*[.?!]?")
_SHORTHAND = frozenset(
    ("lol", "lmao", "omg", "idk", "tbh", "btw", "u", "ur", "r", "n", "k", "haha", "hahaha", "im", "ive", "dont", "cant",
     "didnt", "thats", "whats")
)  # fmt: skip


def sentences(cache: Path) -> list[tuple[str, Split]]:
    """Plain sentences of people's conversations, each once with its conversation's split, in the order of a hash.

    A sentence said in conversations of two splits is left out: none is ever heard in one and read in another.
    """
    found: dict[str, tuple[str, Split]] = {}
    several: set[str] = set()
    for talk in chitchat.find(cache):
        split = split_of(talk.kind, talk.group)
        for turn in talk.fields["turns"]:
            for sentence in re.split(r"(?<=[.?!])\s+", turn):
                same = normalised(sentence)
                if found.setdefault(same, (sentence, split))[1] != split:
                    several.add(same)
    return [
        found[same]
        for same in sorted(found, key=lambda same: (zlib.crc32(f"say {same}".encode()), same))
        if same not in several and _is_plain(found[same][0])
    ]


def _is_plain(sentence: str) -> bool:
    """Whether it is of a length and spelling that voices read aloud as written."""
    words = sentence.lower().rstrip(".?!").split()
    plain = _PLAIN.fullmatch(sentence) and not _SHORTHAND & set(words) and not sentence.isupper()
    return bool(plain) and MIN_WORDS <= len(words) <= MAX_WORDS and all(len(w) < 18 for w in words)


@functools.cache
def _hibari(folder: Path) -> Any:
    build_tool("onnxruntime")
    return build_tool("hibari", folder=folder)


@functools.cache
def _narrator(folder: Path) -> Any:
    return _hibari(folder).Hibari()


def speak_hibari(text: str, folder: Path, *, seed: int = 0) -> np.ndarray:
    """A text in hibari's one voice, (n_samples,) float32 at 16 kHz. folder: the unpacked package."""
    spoken = np.asarray(_narrator(folder)(text, seed=seed), dtype=np.float32)
    return soxr.resample(spoken, _hibari(folder).SAMPLE_RATE, SAMPLE_RATE)


def speak_flite(text: str, voice: str, program: Path, library: Path) -> np.ndarray:
    """A text in one of FLITE_NAMES, (n_samples,) float32 at 16 kHz. library: the folder of libflite."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.wav"
        # -t takes a word without blanks for a file's name.
        subprocess.run(
            [str(program), "-voice", voice, "-t", f"{text} ", "-o", str(path)],
            check=True,
            env={**os.environ, "LD_LIBRARY_PATH": str(library)},
        )
        waveform, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(waveform, rate, SAMPLE_RATE)


def flite(cache: Path) -> tuple[Path, Path]:
    """Flite's program and the folder of its library, fetched."""
    program = next(fetch(FLITE, cache).rglob("bin/flite"))
    return program, next(fetch(FLITE_VOICES, cache).rglob("libflite.so.1")).parent


def spoken(text: str, voice: str, folders: tuple[Path, ...]) -> bytes:
    """A text spoken, trimmed, levelled, as FLAC. Raises MediaError when nothing is heard."""
    waveform = speak_hibari(text, *folders) if voice == "hibari" else speak_flite(text, voice, *folders)
    if not len(waveform) or not np.abs(waveform).max() > 0:
        raise MediaError(f"{voice}: says nothing for {text!r}; expected speech.")
    return encode_flac(levelled(trim(waveform)))


def _find(cache: Path, *, voices: tuple[str, ...], hours: float, first: int, name: str) -> Iterator[Found]:
    """Sentences from number `first` on, the voices in turn, for about so many hours."""
    engines: dict[str, tuple[Path, ...]] = {
        voice: (fetch(HIBARI, cache),) if voice == "hibari" else flite(cache) for voice in voices
    }
    left = hours * 3600 * WORDS_PER_SECOND
    for i, (sentence, split) in enumerate(sentences(cache)[first:]):
        text, voice = spoken_form(sentence), voices[i % len(voices)]
        yield Found(
            kind="speech", id=f"{name}/{voice}/{first + i:06d}", group=text, split=split, suffix=".flac",
            payload=functools.partial(spoken, sentence, voice, engines[voice]),
            fields={"text": text, "raw_text": sentence, "speaker": voice, "synthetic": True},
        )  # fmt: skip
        left -= len(text.split())
        if left < 0:
            return


def _adapter(name: str, title: str, voices: tuple[str, ...], hours: float, first: int = 0) -> Adapter:
    packages = (HIBARI,) if voices == ("hibari",) else (FLITE, FLITE_VOICES)
    return Adapter(
        name=name, title=title, stages=("audio", "codec", "vocoder", "talker", "omni"),
        packages=(chitchat.CONVERSATIONS, *packages),
        licence=packages[0].licence, version=5,
        find=functools.partial(_find, voices=voices, hours=hours, first=first, name=name),
    )  # fmt: skip


ADAPTERS: tuple[Adapter, ...] = (
    _adapter("hibari", "synthetic speech, one voice, about 1 h", ("hibari",), 1.0),
    _adapter("hibari-5h", "synthetic speech, one voice, about 5 h", ("hibari",), 5.0),
    # Other sentences than hibari's first hour.
    _adapter("flite", "synthetic speech, four voices, about 1 h", FLITE_NAMES, 1.0, first=2_000),
    _adapter("flite-4h", "synthetic speech, four voices, about 4 h", FLITE_NAMES, 4.0, first=2_000),
)
