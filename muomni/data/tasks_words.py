"""Tasks about words: transcribing, answering typed and spoken questions, talking, saying; dialogues with media."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from muomni.data.examples import Example
from muomni.data.task import Make, Material, Task, one
from muomni.data.wordings import SAY, wordings

MAX_CHAT_CHARACTERS = 120
"""Longest utterance of a chat pair."""


def word_tasks(material: Material) -> Iterator[Task]:
    """Transcription, definitions, chat, and texts to be said; each of what the source has."""
    longest = material.max_audio_samples
    heard = [(i, item.text) for i, item in enumerate(material.speech) if item.n_samples <= longest]
    asks = wordings("transcribe", material.split)
    yield Task(name="transcribe", n=len(heard), make=_transcribe(asks, heard))
    # A conversation of two turns is a question with its answer; see items.Conversation.
    questions = [(q.text, q.answer) for q in material.questions if q.answer]
    questions += [(talk.turns[0], talk.turns[1]) for talk in material.conversations if len(talk.turns) == 2]
    questions = list(dict.fromkeys(questions))
    yield Task(name="definition", n=len(questions), make=_typed("definition", questions))
    spoken = [
        (len(material.speech) + i, q.answer)
        for i, q in enumerate(material.questions) if q.answer and q.n_samples <= longest
    ]  # fmt: skip
    yield Task(name="definition spoken", n=len(spoken), make=_spoken(spoken))
    pairs = [
        (said, reply)
        for talk in material.conversations if len(talk.turns) > 2
        for said, reply in zip(talk.turns[::2], talk.turns[1::2], strict=False)
        if max(len(said), len(reply)) <= MAX_CHAT_CHARACTERS
    ]  # fmt: skip
    yield Task(name="chat", n=len(pairs), make=_typed("chat", pairs))
    # The same text may be read by many voices, the same thing drawn in many styles.
    texts = dict.fromkeys([*(text for _, text in heard), *(item.label for item in material.pictures)])
    yield Task(name="say", n=len(texts), make=_typed("say", [(SAY + text, text) for text in texts]))
    dialogues = list(_dialogues(material))
    yield Task(name="dialogue", n=len(dialogues), make=lambda i, _: dialogues[i])


def _dialogues(material: Material) -> Iterator[Example]:
    """Conversations with pictures and recordings, as they are; those with a clip that is too long are left out."""
    picture, clip = (
        itertools.count(len(material.pictures) + len(material.lines)),
        itertools.count(len(material.speech) + len(material.questions)),
    )
    for item in material.dialogues:
        rounds: tuple[Example, ...] = ()
        for asked, answered in zip(item.messages[::2], item.messages[1::2], strict=False):
            own = Example(
                task="dialogue", question=asked.text, answer=answered.text, before=rounds,
                pictures=tuple(next(picture) for _ in asked.images), clips=tuple(next(clip) for _ in asked.clips),
            )  # fmt: skip
            rounds = (*rounds, dataclasses.replace(own, before=()))
        if rounds and max(item.n_samples, default=0) <= material.max_audio_samples:
            yield own


def _transcribe(asks: Sequence[str], heard: Sequence[tuple[int, str]]) -> Make:
    def make(i: int, draw: np.random.Generator) -> Example:
        clip, text = heard[i]
        return Example(task="transcribe", question=one(asks, draw), answer=text, clips=(clip,))

    return make


def _typed(task: str, pairs: Sequence[tuple[str, str]]) -> Make:
    def make(i: int, _: np.random.Generator) -> Example:
        return Example(task=task, question=pairs[i][0], answer=pairs[i][1])

    return make


def _spoken(asked: Sequence[tuple[int, str]]) -> Make:
    def make(i: int, _: np.random.Generator) -> Example:
        clip, answer = asked[i]
        return Example(task="definition spoken", question="", answer=answer, clips=(clip,))

    return make
