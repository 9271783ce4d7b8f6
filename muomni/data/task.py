"""What a task is: some things to ask about, and how an example about one of them is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from muomni.data.examples import Example
from muomni.data.items import (
    Conversation,
    DialogueItem,
    LineItem,
    PictureItem,
    QuestionItem,
    Source,
    SpeechItem,
    Split,
)

Some = TypeVar("Some")
Make = Callable[[int, np.random.Generator], Example]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of question and answer."""

    name: str
    n: int
    """Things it can ask about."""
    make: Make
    """An example about one of them, numbered from 0; the generator chooses wordings, voices and other pictures."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """The items of one split that examples are made of, each in the source's order."""

    split: Split
    pictures: Sequence[PictureItem]
    lines: Sequence[LineItem]
    """Their indices among an example's pictures come after those of `pictures`."""
    speech: Sequence[SpeechItem]
    questions: Sequence[QuestionItem]
    """Their indices among an example's clips come after those of `speech`."""
    conversations: Sequence[Conversation]
    dialogues: Sequence[DialogueItem]
    """The indices of their pictures and clips come last."""
    max_audio_samples: int
    """Longer clips are left out."""

    @classmethod
    def of(cls, source: Source, split: Split, *, max_audio_samples: int) -> Material:
        """All that a source has in a split."""
        return cls(
            split=split, pictures=source.pictures(split), lines=source.lines(split), speech=source.speech(split),
            questions=source.questions(split), conversations=source.conversations(split),
            dialogues=source.dialogues(split), max_audio_samples=max_audio_samples,
        )  # fmt: skip

    def asked(self, kind: str) -> list[int]:
        """Clips of the spoken questions of a kind that are short enough."""
        first = len(self.speech)
        return [
            first + i
            for i, q in enumerate(self.questions)
            if q.kind == kind and not q.answer and q.n_samples <= self.max_audio_samples
        ]


def one(options: Sequence[Some], draw: np.random.Generator) -> Some:
    """One of some, all alike."""
    return options[int(draw.integers(len(options)))]
