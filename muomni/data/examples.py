"""Examples of the omni stage: what is asked, with which media, and the answer; rendered as documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from muomni.data.items import LineItem, PictureItem, QuestionItem, Source, SpeechItem, Split
from muomni.data.template import Document, Turn, length, render
from muomni.data.text import Tokenizer

Picture = PictureItem | LineItem
Clip = SpeechItem | QuestionItem


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


def pictures(split: Split, source: Source) -> tuple[Picture, ...]:
    """Every picture of a split: pictures of things, then those of written words."""
    return (*source.pictures(split), *source.lines(split))


def clips(split: Split, source: Source) -> tuple[Clip, ...]:
    """Every clip of a split: recordings, then spoken questions."""
    return (*source.speech(split), *source.questions(split))


def swapped(chosen: Sequence[Example]) -> list[Example]:
    """The same questions and answers, each with what the answer depends on taken from another example.

    That is the pictures, or else the recordings; a spoken question about a picture stays. The other example is the
    nearest one, cyclically, whose answer differs.
    """
    result = []
    for i, example in enumerate(chosen):
        others = (chosen[(i + k) % len(chosen)] for k in range(1, len(chosen)))
        other = next((o for o in others if o.answer != example.answer), example)
        changed = {"pictures": other.pictures} if example.pictures else {"clips": other.clips}
        result.append(dataclasses.replace(example, **changed))
    return result


class Places(TypedDict):
    """What the length of an example's document depends on besides its text."""

    clip_tokens: Sequence[int]
    """Audio positions of each clip of the split."""
    n_image_tokens: int
    max_seq_len: int


def fitting(chosen: Sequence[Example], tokenizer: Tokenizer, **places: Unpack[Places]) -> list[Example]:
    """Those examples whose documents, media included, are not longer than max_seq_len."""
    turns = _turns(chosen, tokenizer, places["clip_tokens"], media=True)
    lengths = [length([turn], places["n_image_tokens"]) for turn in turns]
    return [e for e, n in zip(chosen, lengths, strict=True) if n <= places["max_seq_len"]]


def documents(
    chosen: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    clip_tokens: Sequence[int],
    n_image_tokens: int,
    max_seq_len: int,
    media: bool = True,
) -> list[Document]:
    """Examples rendered by the template.

    clip_tokens: audio positions of each clip of the split. media: False leaves pictures and clips out.
    Raises TokenBudgetError for one that `fitting` would leave out.
    """
    turns = _turns(chosen, tokenizer, clip_tokens, media=media)
    return [render([turn], n_image_tokens=n_image_tokens, max_seq_len=max_seq_len) for turn in turns]


def _turns(
    chosen: Sequence[Example], tokenizer: Tokenizer, clip_tokens: Sequence[int], *, media: bool
) -> list[Turn]:
    asked = tokenizer.encode_batch([e.question for e in chosen])
    answers = tokenizer.encode_batch([e.answer for e in chosen])
    return [
        Turn(
            text=question,
            answer=answer,
            n_images=len(example.pictures) if media else 0,
            clips=[clip_tokens[clip] for clip in example.clips] if media else [],
        )
        for example, question, answer in zip(chosen, asked, answers, strict=True)
    ]
