"""What data sets are made of: items by kind, each in one split, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Kind = Literal["speech", "questions", "pictures", "lines", "conversations", "texts", "dialogues"]
KINDS: tuple[Kind, ...] = (
    "speech", "questions", "pictures", "lines", "conversations", "texts", "dialogues",
)  # fmt: skip
SAMPLE_RATE = 16_000
"""Hz of every waveform a source gives."""


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
    language: str = "en"
    """ISO 639-1."""

    @property
    def is_question(self) -> bool:
        """Whether the speaker asks something, by the source's punctuation."""
        return "?" in self.raw_text


@dataclass(frozen=True, kw_only=True)
class QuestionItem:
    """A spoken question: about a picture, or one with its own answer."""

    id: str
    text: str
    kind: str
    """What it asks for: name or group of a picture, or, with its answer, definition or another kind."""
    voice: str
    synthetic: bool
    split: str
    n_samples: int
    """Length at 16 kHz."""
    answer: str = ""
    """Empty for a question about a picture."""


@dataclass(frozen=True, kw_only=True)
class PictureItem:
    """A picture with its words."""

    id: str
    label: str
    tags: tuple[str, ...]
    group: str
    """What kind of thing it is, in words."""
    split: str
    captions: tuple[str, ...] = ()
    """Whole sentences that people wrote about it."""
    style: str = ""
    """How it is made: photo, drawing, icon, or an emoji font's name."""


@dataclass(frozen=True, kw_only=True)
class LineItem:
    """A picture of written words."""

    id: str
    text: str
    """What is written on it."""
    split: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation between two people, one string per turn; a question with its answer has two."""

    id: str
    split: str
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        """The turns, one per line."""
        return "\n".join(self.turns)


@dataclass(frozen=True, kw_only=True)
class TextItem:
    """A piece of prose."""

    id: str
    text: str
    split: str
    technical: bool = False
    """Documentation and descriptions of software, whose share a mix bounds."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a dialogue with media."""

    role: Literal["user", "assistant"]
    text: str = ""
    images: tuple[int, ...] = ()
    """Places of its pictures among the dialogue's files."""
    clips: tuple[int, ...] = ()
    """Places of its recordings among the dialogue's files."""


@dataclass(frozen=True, kw_only=True)
class DialogueItem:
    """A conversation that holds pictures or recordings: a user's own data for stage omni."""

    id: str
    messages: tuple[Message, ...]
    split: str
    sizes: tuple[int, ...] = ()
    """Bytes of each file, which lie one after another."""


Item = SpeechItem | QuestionItem | PictureItem | LineItem | Conversation | TextItem | DialogueItem
TYPES: dict[Kind, type[Item]] = {
    "speech": SpeechItem, "questions": QuestionItem, "pictures": PictureItem, "lines": LineItem,
    "conversations": Conversation, "texts": TextItem, "dialogues": DialogueItem,
}  # fmt: skip


class Source(Protocol):
    """A data set: its items by kind and split, and what they hold."""

    def items(self, kind: Kind, split: Split) -> list[Item]:
        """The items of a kind in a split, in the set's order."""
        ...

    def waveform(self, item: SpeechItem | QuestionItem) -> np.ndarray:
        """A clip as (n_samples,) float32 mono at 16 kHz. Raises MediaError."""
        ...

    def picture(self, item: PictureItem | LineItem) -> np.ndarray:
        """A picture as (3, H, W) uint8 RGB. Raises MediaError."""
        ...
