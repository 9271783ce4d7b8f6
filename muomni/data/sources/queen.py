"""A game's recorded dialogue with its lines: Flight of the Amazon Queen, about thirty roles (Debian package)."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from muomni.data.items import SAMPLE_RATE
from muomni.data.media import MediaError
from muomni.data.sources.adapter import Adapter, Found, LeftOutError
from muomni.data.sources.asterisk import spoken_form
from muomni.data.sources.fetch import Package, fetch
from muomni.data.sources.queen_lines import lines, members
from muomni.data.sources.sound import encode_flac, trim

GAME = Package(
    registry="debian",
    name="flight-of-the-amazon-queen",
    version="1.0.0-9",
    n_bytes=34_859_620,
    sha256="40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
    licence="Flight-of-the-Amazon-Queen-License",
    attribution="Flight of the Amazon Queen, Copyright 1995 John Passfield and Steven Stamatiadis",
    gives="recorded English dialogue with its lines, resampled, trimmed and re-encoded",
)
STATED_RATE = 11_025
"""Hz, as the recordings' headers have it."""
PLAYED_RATE = 11_840
"""Hz at which the game plays them."""
PACE = (3.0, 25.0)
"""Letters and spaces a second between which a line can be what is heard; 93 of 6,396 are slower, 2 faster."""
WITHOUT_WORDS = re.compile(r"(03|14|79)....P.")
"""What a gorilla, a dog and a gagged man say in their dialogues."""

# A song's note, an oath in signs, a date, an hour, a model's number; "Ms."; a sound that is spelled, such as grrr.
_UNCLEAR = re.compile(r"[@#&$/]|\d{4}|\d[a-z:]|\bms\b|([a-z])\1\1", re.IGNORECASE)
_SHORT = {"mr": "mister", "dr": "doctor"}


def said(line: str) -> str:
    """What is heard of a line; empty where the writing does not tell."""
    if _UNCLEAR.search(line):
        return ""
    return " ".join(_SHORT.get(word, word) for word in spoken_form(line).split())


def flac_of(recording: bytes, text: str) -> bytes:
    """A recording as FLAC at 16 kHz, silence trimmed.

    Raises MediaError for one that cannot be decoded or is silent, LeftOutError for one that is too short or too
    long for its text.
    """
    name = f"<{len(recording)} bytes>"
    try:
        waveform, rate = soundfile.read(io.BytesIO(recording), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{name}: is not a readable recording ({error.error_string.rstrip('.')}).") from None
    if rate != STATED_RATE or waveform.ndim != 1:
        raise MediaError(f"{name}: {rate} Hz, {waveform.ndim} channels; expected {STATED_RATE} Hz, mono.")
    waveform = soxr.resample(waveform, PLAYED_RATE, SAMPLE_RATE)
    if not len(waveform) or not np.abs(waveform).max() > 0:
        raise MediaError(f"{name}: is silent; expected speech.")
    waveform = trim(waveform)
    pace = len(text) * SAMPLE_RATE / len(waveform)
    if not PACE[0] <= pace <= PACE[1]:
        raise LeftOutError(f"{'slower' if pace < PACE[0] else 'faster'} than its line is spoken")
    return encode_flac(waveform)


def _find(cache: Path) -> Iterator[Found]:
    container = next(fetch(GAME, cache).rglob("queen.1c")).read_bytes()
    found = members(container)
    heard: set[bytes] = set()
    for name, line in lines(found):
        recording, text = bytes(found[f"{name}.SB"]), said(line.text)
        # Some recordings are there twice under two names.
        if not text or WITHOUT_WORDS.fullmatch(name) or recording in heard:
            continue
        heard.add(recording)
        yield Found(
            kind="speech", id=f"queen/{name}", group=text, suffix=".flac",
            payload=functools.partial(flac_of, recording, text),
            fields={"text": text, "raw_text": line.text, "speaker": f"queen-{line.speaker}", "synthetic": False},
        )  # fmt: skip


ADAPTERS: tuple[Adapter, ...] = (
    Adapter(
        name="queen", title="a game's recorded dialogue, actors in about thirty roles", stages=("audio", "omni"),
        licence=GAME.licence, packages=(GAME,), find=_find, opt_in="not to be sold as a game",
    ),
)  # fmt: skip
