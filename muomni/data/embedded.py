"""The embedded data set: real recordings with transcripts, pictures with words, conversations.

It lies in the package (muomni/data/embedded/, about 10 MB) and needs no network. Where it comes from
and how to rebuild it: data/sources/, `muomni data embed`, ATTRIBUTION.md.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from muomni.data.media import MediaError, read_audio, read_image
from muomni.data.shards import TarShard
from muomni.errors import UserError

Split = Literal["train", "validation", "test"]
FOLDER = Path(__file__).with_name("embedded")
SAMPLE_RATE = 16_000
"""Hz of every waveform of the set."""
PICTURE_SHAPE = (128, 128, 3)
"""Height, width and channels of every picture of the set."""


class EmbeddedDataError(UserError, RuntimeError):
    """A file of the embedded set is missing or changed."""


@dataclass(frozen=True, kw_only=True)
class SpeechItem:
    """A recording with its transcript."""

    id: str
    text: str
    """What is heard: lower-case words."""
    raw_text: str
    """The source's transcript as written."""
    speaker: str
    synthetic: bool
    split: str
    n_samples: int
    """Length at 16 kHz."""

    @property
    def is_question(self) -> bool:
        """Whether the speaker asks something, by the source's punctuation."""
        return "?" in self.raw_text


@dataclass(frozen=True, kw_only=True)
class QuestionItem:
    """A spoken question about a picture; synthetic speech, labelled so."""

    id: str
    text: str
    kind: str
    """What it asks for: name or group."""
    voice: str
    synthetic: bool
    split: str
    n_samples: int
    """Length at 16 kHz."""


@dataclass(frozen=True, kw_only=True)
class PictureItem:
    """A picture with its words."""

    id: str
    label: str
    tags: tuple[str, ...]
    group: str
    """What kind of thing it is, in words."""
    split: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation between two people, one string per turn."""

    id: str
    split: str
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        """The turns, one per line."""
        return "\n".join(self.turns)


class Source(Protocol):
    """The items of a data set, by kind and split; this module is one."""

    def speech(self, split: Split) -> list[SpeechItem]:
        """Recordings."""
        ...

    def questions(self, split: Split) -> list[QuestionItem]:
        """Spoken questions."""
        ...

    def pictures(self, split: Split) -> list[PictureItem]:
        """Pictures."""
        ...

    def conversations(self, split: Split) -> list[Conversation]:
        """Conversations."""
        ...


@functools.cache
def _shard(name: str) -> TarShard:
    return TarShard(FOLDER / name)


def speech(split: Split) -> list[SpeechItem]:
    """Recordings of a split."""
    return [SpeechItem(**record) for record in _shard("speech.tar").records if record["split"] == split]


def questions(split: Split) -> list[QuestionItem]:
    """Spoken questions of a split."""
    return [QuestionItem(**record) for record in _shard("questions.tar").records if record["split"] == split]


def pictures(split: Split) -> list[PictureItem]:
    """Pictures of a split."""
    return [
        PictureItem(**{**record, "tags": tuple(record["tags"])})
        for record in _shard("pictures.tar").records
        if record["split"] == split
    ]


@functools.cache
def _conversations() -> tuple[Conversation, ...]:
    # A byte that is not UTF-8 spoils its own item alone: read_text finds what stands for it.
    text = lzma.decompress((FOLDER / "text.jsonl.xz").read_bytes()).decode("utf-8", "surrogateescape")
    rows = map(json.loads, text.splitlines())
    return tuple(Conversation(id=row["id"], split=row["split"], turns=tuple(row["turns"])) for row in rows)


def conversations(split: Split) -> list[Conversation]:
    """Conversations of a split."""
    return [item for item in _conversations() if item.split == split]


def audio_bytes(item: SpeechItem | QuestionItem) -> bytes:
    """A clip's file (Ogg Opus)."""
    name = "speech.tar" if isinstance(item, SpeechItem) else "questions.tar"
    return _shard(name).read(item.id.replace("/", "_") + ".ogg")


def waveform(item: SpeechItem | QuestionItem) -> np.ndarray:
    """A clip as (n_samples,) float32 mono at 16 kHz. Raises MediaError, also for another length than its record's."""
    samples = read_audio(audio_bytes(item), sample_rate=SAMPLE_RATE)
    if len(samples) != item.n_samples:
        raise MediaError(
            f"{item.id}: {len(samples)} samples, its record says {item.n_samples}; expected a whole recording."
        )
    return samples


def picture_bytes(item: PictureItem) -> bytes:
    """A picture's file (WebP, 128 x 128)."""
    return _shard("pictures.tar").read(item.id.replace("/", "_") + ".webp")


def picture(item: PictureItem) -> np.ndarray:
    """A picture as (3, 128, 128) uint8 RGB. Raises MediaError, also for another size."""
    pixels = np.asarray(read_image(picture_bytes(item)))
    if pixels.shape != PICTURE_SHAPE:
        raise MediaError(f"{item.id}: {pixels.shape[1]} x {pixels.shape[0]} pixels; expected 128 x 128.")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def manifest() -> dict[str, Any]:
    """Files with hashes, and sources with versions, licences and attributions."""
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def attribution() -> str:
    """The attribution text of the embedded data."""
    return (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")


def verify(folder: Path = FOLDER) -> int:
    """Check every file against the manifest's SHA-256; the number of files.

    Raises EmbeddedDataError naming the first file that is missing or differs.
    """
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    for name, expected in files.items():
        path = folder / name
        if not path.exists():
            raise EmbeddedDataError(f"{path}: missing; reinstall muomni or run `muomni data embed`.")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected["sha256"]:
            raise EmbeddedDataError(
                f"{path}: SHA-256 {found[:12]}..., expected {expected['sha256'][:12]}...; reinstall muomni."
            )
    return len(files)


def _seconds(clips: Sequence[SpeechItem | QuestionItem]) -> float:
    return sum(clip.n_samples for clip in clips) / SAMPLE_RATE


def summary() -> list[tuple[str, ...]]:
    """What the set holds: rows of (what, split, items, amount)."""
    rows: list[tuple[str, ...]] = [("what", "split", "items", "amount")]
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        clips, asked = speech(split), questions(split)
        talks = conversations(split)
        rows += [
            ("recorded speech", split, str(len(clips)), f"{_seconds(clips) / 60:.1f} min"),
            ("spoken questions (synthetic)", split, str(len(asked)), f"{_seconds(asked):.0f} s"),
            ("pictures", split, str(len(pictures(split))), "128 x 128"),
            ("conversations", split, str(len(talks)), f"{sum(len(c.text) for c in talks) / 1e3:.0f} kB"),
        ]
    return rows
