"""The tasks of the omni stage as plain examples: what is asked, with which media, and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from muomni.data.items import QuestionItem, Source, SpeechItem, Split
from muomni.data.template import Document, Turn, length, render
from muomni.data.text import Tokenizer

SAY = "say: "
"""How a user asks for a text to be spoken; the Talker is trained on the answers to it."""
TRANSCRIBE = ("transcribe the recording", "what is said here", "write down what you hear")
NAMING = ("name", "name spoken", "group", "group spoken")
"""Tasks with a picture; the spoken ones ask with a clip."""
TASKS = (*NAMING, "transcribe", "chat", "say")
MAX_CHAT_CHARACTERS = 120
"""Longest utterance of a chat pair."""
MAX_CHAT_PAIRS = 2_500
"""Chat pairs of a split; more would crowd out the tasks with media."""
TRANSCRIPTIONS = 4
"""Times a training recording is to be transcribed in one pass over the examples."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question and its answer."""

    task: str
    """One of TASKS."""
    question: str
    """Typed text; empty when the question is spoken."""
    answer: str
    picture: int | None = None
    """Index into the split's pictures."""
    clip: int | None = None
    """Index into `clips` of the split."""


Clip = SpeechItem | QuestionItem


def clips(split: Split, source: Source) -> tuple[Clip, ...]:
    """Every clip of a split: recordings, then spoken questions."""
    return (*source.speech(split), *source.questions(split))


def examples(split: Split, *, max_audio_samples: int, source: Source) -> list[Example]:
    """All examples of a split, in a fixed order; question variants are dealt out by index.

    max_audio_samples: recordings longer than that are left out.
    """
    recordings, asked = clips(split, source), source.questions(split)
    offset = len(recordings) - len(asked)
    spoken = {kind: [offset + i for i, q in enumerate(asked) if q.kind == kind] for kind in ("name", "group")}
    typed = {kind: list(dict.fromkeys(q.text for q in asked if q.kind == kind)) for kind in ("name", "group")}
    found: list[Example] = []
    for i, item in enumerate(source.pictures(split)):
        for kind, answer in (("name", item.label), ("group", item.group)):
            questions = typed[kind]
            found.append(Example(task=kind, question=questions[i % len(questions)], answer=answer, picture=i))
            voices = spoken[kind]
            # A stride coprime to the questions pairs every picture with another voice than its neighbours.
            clip = voices[(7 * i) % len(voices)]
            found.append(Example(task=f"{kind} spoken", question="", answer=answer, picture=i, clip=clip))
    for i, item in enumerate(source.speech(split)):
        if item.n_samples <= max_audio_samples:
            for n in range(TRANSCRIPTIONS if split == "train" else 1):
                asks = TRANSCRIBE[(i + n) % len(TRANSCRIBE)]
                found.append(Example(task="transcribe", question=asks, answer=item.text, clip=i))
            found.append(Example(task="say", question=SAY + item.text, answer=item.text))
    pairs = [
        (said, reply)
        for talk in source.conversations(split)
        for said, reply in zip(talk.turns[::2], talk.turns[1::2], strict=False)
        if max(len(said), len(reply)) <= MAX_CHAT_CHARACTERS
    ]
    found += [Example(task="chat", question=said, answer=reply) for said, reply in pairs[:MAX_CHAT_PAIRS]]
    for item in source.pictures(split):
        found.append(Example(task="say", question=SAY + item.label, answer=item.label))
    return found


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
            n_images=int(media and example.picture is not None),
            clips=[clip_tokens[example.clip]] if media and example.clip is not None else [],
        )
        for example, question, answer in zip(chosen, asked, answers, strict=True)
    ]
