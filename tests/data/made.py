"""A small source of every kind, made in memory, for the tests of preparing and of what is prepared."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

from muomni.data.media import MediaError
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import Package

WORDS = [
    "red", "green", "blue", "one", "two", "three", "house", "tree", "river", "stone", "bird", "fish", "lamp", "chair",
    "cloud", "road",
]  # fmt: skip
PACKAGE = Package(
    registry="pypi", name="made", version="1", sha256="0" * 64, licence="MIT", attribution="us", gives="all"
)


SECONDS = 1.2
"""Of every recording."""


def tone(seed: int, *, rate: int = 22_050, seconds: float = SECONDS) -> bytes:
    """A FLAC of a tone whose pitch is the seed's."""
    time = np.arange(int(rate * seconds)) / rate
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(2 * np.pi * (200 + 10 * seed) * time), rate, format="FLAC")
    return buffer.getvalue()


def drawing(seed: int, *, side: int = 96) -> bytes:
    """A PNG of blocks of grey, another pattern for each seed."""
    grid = np.random.default_rng(seed).integers(0, 255, (8, 9), dtype=np.uint8)
    picture = Image.fromarray(grid).resize((side, side), Image.Resampling.NEAREST).convert("RGB")
    ImageDraw.Draw(picture).rectangle((0, 0, 2, 2), fill=(255, 0, 0))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def broken() -> bytes:
    """A maker that fails."""
    raise MediaError("made: could not be synthesised.")


def sentence(i: int) -> str:
    """Three words, another sentence for every i below 4,096."""
    return " ".join(WORDS[(i // 16**k) % 16] for k in range(3))


def find(cache: Path, *, n: int = 120, n_bad: int = 0) -> Iterator[Found]:
    """n of speech, pictures, conversations and texts, n // 10 of the other kinds, n_bad that cannot be used."""
    for i in range(n):
        text = sentence(i)
        bad = i < n_bad
        yield Found(
            kind="speech", id=f"made/speech/{i}", group=text, suffix=".flac",
            payload=broken if bad and i % 2 else b"RIFFnothing" if bad else functools.partial(tone, i % 40),
            fields={"text": text, "raw_text": text.title(), "speaker": f"voice {i % 3}", "synthetic": False},
        )  # fmt: skip
        yield Found(
            kind="pictures", id=f"made/picture/{i}", group=f"concept {i}", payload=drawing(i), suffix=".png",
            fields={"label": f"thing {i}", "tags": ["a", WORDS[i % 16]], "group": "thing"},
        )  # fmt: skip
        yield Found(
            kind="conversations", id=f"made/talk/{i}", group=f"talk {i}",
            fields={"turns": [f"tell me about {text}", f"it is number {i}"]},
        )  # fmt: skip
        yield Found(
            kind="texts", id=f"made/text/{i}", group=f"work {i // 4}", fields={"text": f"{text}. " * 20}
        )
        if i % 10 == 0:
            yield Found(
                kind="questions", id=f"made/question/{i}", group=f"what is {text}", suffix=".flac",
                payload=tone(i % 40), fields={"text": f"what is {text}", "kind": "definition", "voice": "v",
                                              "synthetic": True, "answer": "a thing"},
            )  # fmt: skip
            yield Found(
                kind="lines", id=f"made/line/{i}", group=text, payload=drawing(i + 10_000), suffix=".png",
                fields={"text": text},
            )  # fmt: skip
            yield Found(
                kind="dialogues", id=f"made/dialogue/{i}", group=f"dialogue {i}",
                files=(drawing(i + 20_000), tone(i % 40)),
                fields={"messages": [{"role": "user", "text": "what is this", "images": [0], "clips": [1]},
                                     {"role": "assistant", "text": f"thing {i}"}]},
            )  # fmt: skip


def adapter(*, n: int = 120, n_bad: int = 0, name: str = "made", **changes: object) -> Adapter:
    """The source as a set."""
    return Adapter(
        name=name, title="made in memory", stages=("text", "audio"), licence="MIT", packages=(PACKAGE,),
        find=functools.partial(find, n=n, n_bad=n_bad), **changes,  # type: ignore[arg-type]
    )  # fmt: skip
