"""What data sets are made of: items by kind, each in one split, with their files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from muomni.data.image import to_array
from muomni.data.media import MediaError, read_audio, read_image

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

    of: ClassVar[Kind] = "speech"
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

    of: ClassVar[Kind] = "questions"
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

    of: ClassVar[Kind] = "pictures"
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

    of: ClassVar[Kind] = "lines"
    id: str
    text: str
    """What is written on it."""
    split: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation between two people, one string per turn; a question with its answer has two."""

    of: ClassVar[Kind] = "conversations"
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

    of: ClassVar[Kind] = "texts"
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

    of: ClassVar[Kind] = "dialogues"
    id: str
    messages: tuple[Message, ...]
    split: str
    sizes: tuple[int, ...] = ()
    """Bytes of each file, which lie one after another."""
    n_samples: tuple[int, ...] = ()
    """Length of each file at 16 kHz, 0 for a picture."""


@dataclass(frozen=True, kw_only=True)
class DialogueFile:
    """One file of a dialogue."""

    of: ClassVar[Kind] = "dialogues"
    dialogue: DialogueItem
    place: int
    """Among the dialogue's files."""

    @property
    def id(self) -> str:
        """The dialogue's, with the place."""
        return f"{self.dialogue.id}#{self.place}"

    @property
    def split(self) -> str:
        """The dialogue's."""
        return self.dialogue.split


class DialoguePicture(DialogueFile):
    """A picture of a dialogue."""


class DialogueClip(DialogueFile):
    """A recording of a dialogue."""

    @property
    def n_samples(self) -> int:
        """Length at 16 kHz."""
        return self.dialogue.n_samples[self.place]


Item = (
    SpeechItem | QuestionItem | PictureItem | LineItem | Conversation | TextItem | DialogueItem | DialogueFile
)
TYPES: dict[Kind, type[Item]] = {
    "speech": SpeechItem, "questions": QuestionItem, "pictures": PictureItem, "lines": LineItem,
    "conversations": Conversation, "texts": TextItem, "dialogues": DialogueItem,
}  # fmt: skip


def read_item(kind: Kind, record: dict[str, Any]) -> Item:
    """An item from its JSON record. Raises TypeError for a field it does not have."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    if kind == "dialogues":
        fields["messages"] = tuple(
            Message(**{**m, "images": tuple(m.get("images", ())), "clips": tuple(m.get("clips", ()))})
            for m in record["messages"]
        )
    return TYPES[kind](**fields)


class Source(ABC):
    """A data set: its items by kind and split, and their files."""

    admitted = False
    """Whether every file has passed media.py before, so that it need not be read again before training."""

    @abstractmethod
    def items(self, kind: Kind, split: Split) -> list[Item]:
        """The items of a kind in a split, in the set's order."""

    @abstractmethod
    def file(self, item: Item) -> bytes:
        """An item's file as it is stored; those of a dialogue one after another."""

    def _file(self, item: Item) -> bytes:
        if not isinstance(item, DialogueFile):
            return self.file(item)
        start, size = sum(item.dialogue.sizes[: item.place]), item.dialogue.sizes[item.place]
        return self.file(item.dialogue)[start : start + size]

    def waveform(self, item: SpeechItem | QuestionItem | DialogueClip) -> np.ndarray:
        """A clip as (n_samples,) float32 mono at 16 kHz. Raises MediaError, also for another length than recorded."""
        samples = read_audio(self._file(item), sample_rate=SAMPLE_RATE)
        if len(samples) != item.n_samples:
            raise MediaError(
                f"{item.id}: {len(samples)} samples, its record says {item.n_samples}; expected a whole recording."
            )
        return samples

    def picture(self, item: PictureItem | LineItem | DialoguePicture, *, side: int) -> np.ndarray:
        """A picture fitted on a white square, (3, side, side) uint8 RGB. Raises MediaError."""
        return to_array(read_image(self._file(item)), side)

    def speech(self, split: Split) -> list[SpeechItem]:
        """Recordings."""
        return [item for item in self.items("speech", split) if isinstance(item, SpeechItem)]

    def questions(self, split: Split) -> list[QuestionItem]:
        """Spoken questions."""
        return [item for item in self.items("questions", split) if isinstance(item, QuestionItem)]

    def pictures(self, split: Split) -> list[PictureItem]:
        """Pictures."""
        return [item for item in self.items("pictures", split) if isinstance(item, PictureItem)]

    def lines(self, split: Split) -> list[LineItem]:
        """Pictures of written words."""
        return [item for item in self.items("lines", split) if isinstance(item, LineItem)]

    def conversations(self, split: Split) -> list[Conversation]:
        """Conversations."""
        return [item for item in self.items("conversations", split) if isinstance(item, Conversation)]

    def texts(self, split: Split) -> list[TextItem]:
        """Pieces of prose."""
        return [item for item in self.items("texts", split) if isinstance(item, TextItem)]

    def dialogues(self, split: Split) -> list[DialogueItem]:
        """Conversations with media."""
        return [item for item in self.items("dialogues", split) if isinstance(item, DialogueItem)]
