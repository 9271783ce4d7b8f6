"""Greedy answers to many questions: as many at a time as the engine has rows, which share its steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from muomni.infer.session import Session
from muomni.infer.turn import TurnStream


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a user asks in a conversation of its own."""

    text: str = ""
    pictures: tuple[bytes, ...] = ()
    """Files."""
    clips: tuple[bytes, ...] = ()
    """Files."""


def write(session: Session, asked: Sequence[Question], *, max_new_tokens: int = 48) -> list[str]:
    """The greedy answer to each question; the session's own conversation is not touched.

    An answer is what `Session.chat` gives alone, however many others are written at the same time.
    """
    answers: dict[int, str] = {}
    waiting, going = deque(enumerate(asked)), deque[tuple[int, TurnStream]]()
    while waiting or going:
        while waiting and len(going) < session.engine.decoder.cache.batch:
            i, question = waiting.popleft()
            stream = session.another().stream(
                question.text or None, image=question.pictures, audio=question.clips, speak=False,
                max_new_tokens=max_new_tokens,
            )  # fmt: skip
            going.append((i, stream))
        # One piece of each in turn, so that all of them move on with every step.
        i, stream = going.popleft()
        if next(stream, None) is None:
            answers[i] = stream.reply.text
        else:
            going.append((i, stream))
    return [answers[i] for i in range(len(asked))]
