"""Examples of the omni stage: what is asked, with which media, and the answer; rendered as documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from muomni.data.items import (
    DialogueClip,
    DialogueItem,
    DialoguePicture,
    LineItem,
    PictureItem,
    QuestionItem,
    Source,
    SpeechItem,
    Split,
)
from muomni.data.template import Document, Turn, length, render
from muomni.data.text import Tokenizer

Picture = PictureItem | LineItem | DialoguePicture
Clip = SpeechItem | QuestionItem | DialogueClip


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question and its answer."""

    task: str
    """One of tasks.TASKS."""
    question: str
    """Typed text; empty when the question is spoken."""
    answer: str
    pictures: tuple[int, ...] = ()
    """Indices into `pictures` of the split, in the order they are shown."""
    clips: tuple[int, ...] = ()
    """Indices into `clips` of the split, in the order they are played."""
    before: tuple[Example, ...] = ()
    """Earlier rounds of the same conversation, whose answers are learned too."""

    @property
    def rounds(self) -> tuple[Example, ...]:
        """The whole conversation."""
        return (*self.before, self)

    @property
    def all_pictures(self) -> tuple[int, ...]:
        """The pictures of all rounds."""
        return tuple(i for one in self.rounds for i in one.pictures)

    @property
    def all_clips(self) -> tuple[int, ...]:
        """The clips of all rounds."""
        return tuple(i for one in self.rounds for i in one.clips)


def pictures(split: Split, source: Source) -> tuple[Picture, ...]:
    """Every picture of a split: of things, of written words, and those of dialogues in the order they are shown."""
    shown = (
        DialoguePicture(dialogue=item, place=place)
        for item in source.dialogues(split)
        for place in shown_in(item)
    )
    return (*source.pictures(split), *source.lines(split), *shown)


def clips(split: Split, source: Source) -> tuple[Clip, ...]:
    """Every clip of a split: recordings, spoken questions, and those of dialogues in the order they are played."""
    played = (
        DialogueClip(dialogue=item, place=place)
        for item in source.dialogues(split)
        for place in played_in(item)
    )
    return (*source.speech(split), *source.questions(split), *played)


def shown_in(item: DialogueItem) -> list[int]:
    """Places of a dialogue's pictures among its files, in the order they are shown."""
    return [place for message in item.messages for place in message.images]


def played_in(item: DialogueItem) -> list[int]:
    """Places of a dialogue's recordings among its files, in the order they are played."""
    return [place for message in item.messages for place in message.clips]


def swapped(chosen: Sequence[Example]) -> list[Example]:
    """The same questions and answers, each with what the answer depends on taken from another example.

    That is the pictures, or else the recordings; a spoken question about a picture stays. The other example is the
    nearest one, cyclically, whose answer differs and which is about something else: a picture may have two captions.
    """
    result = []
    for i, example in enumerate(chosen):
        others = (chosen[(i + k) % len(chosen)] for k in range(1, len(chosen)))
        what = "pictures" if example.pictures else "clips"
        own = getattr(example, what)
        other = next((o for o in others if o.answer != example.answer and getattr(o, what) != own), example)
        result.append(dataclasses.replace(example, **{what: getattr(other, what)}))
    return result


class Places(TypedDict):
    """What the length of an example's document depends on besides its text."""

    clip_tokens: Sequence[int]
    """Audio positions of each clip of the split."""
    heard: Mapping[int, Sequence[int]]
    """Token ids of what the ear spells of a clip of the split, by its number; of others nothing is written."""
    n_image_tokens: int
    max_seq_len: int


def fitting(chosen: Sequence[Example], tokenizer: Tokenizer, **places: Unpack[Places]) -> list[Example]:
    """Those examples whose documents, media included, are not longer than max_seq_len."""
    turns = _turns(chosen, tokenizer, places, media=True)
    lengths = [length(rounds, places["n_image_tokens"]) for rounds in turns]
    return [e for e, n in zip(chosen, lengths, strict=True) if n <= places["max_seq_len"]]


def documents(
    chosen: Sequence[Example], tokenizer: Tokenizer, *, media: bool = True, **places: Unpack[Places]
) -> list[Document]:
    """Examples rendered by the template. media: False leaves pictures and clips out, and what is heard of them.

    Raises TokenBudgetError for one that `fitting` would leave out.
    """
    n_image_tokens, max_seq_len = places["n_image_tokens"], places["max_seq_len"]
    return [
        render(rounds, n_image_tokens=n_image_tokens, max_seq_len=max_seq_len)
        for rounds in _turns(chosen, tokenizer, places, media=media)
    ]


def _turns(
    chosen: Sequence[Example], tokenizer: Tokenizer, places: Places, *, media: bool
) -> list[list[Turn]]:
    rounds = [one for example in chosen for one in example.rounds]
    asked = tokenizer.encode_batch([one.question for one in rounds])
    answers = tokenizer.encode_batch([one.answer for one in rounds])
    turns = iter(
        Turn(
            text=question,
            answer=answer,
            n_images=len(one.pictures) if media else 0,
            clips=[places["clip_tokens"][clip] for clip in one.clips] if media else [],
            heard=[places["heard"].get(clip, ()) for clip in one.clips] if media else [],
        )
        for one, question, answer in zip(rounds, asked, answers, strict=True)
    )
    return [[next(turns) for _ in example.rounds] for example in chosen]
