"""Turns rendered straight to token ids, labels, positions and placeholder slots.

    [BOS] { [USER] images clips question [EOS] [ASSISTANT] answer [EOS] } ...

Control tokens are written here as ids and never as text, so a user cannot forge one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from muomni.config import TokenBudgetError
from muomni.tokens import ASSISTANT, AUDIO, BOS, EOS, IGNORE_INDEX, IMAGE, USER


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a user gave and, if it is known, what the assistant answers."""

    text: Sequence[int] = ()
    """Token ids of the user's text, no control token among them."""
    n_images: int = 0
    """Pictures, written before the clips."""
    clips: Sequence[int] = ()
    """Audio positions of each clip."""
    answer: Sequence[int] | None = None
    """Token ids of the answer; None: the document ends with [ASSISTANT], ready to be continued."""
    learn: bool = True
    """Whether the answer and its EOS are targets."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One whole sequence, not yet packed."""

    input_ids: torch.Tensor
    """(n,) int64."""
    labels: torch.Tensor
    """(n,) int64: the token itself where it is to be predicted, IGNORE_INDEX elsewhere. Not shifted."""
    positions: torch.Tensor
    """(n, 3) int64: time, height, width."""
    image_slots: torch.Tensor
    """(n_images * n_image_tokens,) int64: where the pictures' placeholders are."""
    audio_slots: torch.Tensor
    """(sum of clips,) int64: where the clips' placeholders are."""
    answers: tuple[tuple[int, int], ...] = ()
    """(start, end) of each answer's text, its EOS left out."""
    truncated: int = 0
    """Text tokens left out to fit."""

    def __len__(self) -> int:
        """Positions."""
        return len(self.input_ids)


class Writer:
    """Appends tokens and keeps track of the three rotary positions."""

    def __init__(self) -> None:
        """An empty document."""
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.positions: list[tuple[int, int, int]] = []
        self.slots: dict[int, list[int]] = {IMAGE: [], AUDIO: []}
        self.next = 0

    def text(self, ids: Sequence[int], *, learn: bool = False) -> None:
        """Text and control tokens: equal positions on the three axes, one step each."""
        self.ids.extend(ids)
        self.labels.extend(ids if learn else [IGNORE_INDEX] * len(ids))
        self.positions.extend((p, p, p) for p in range(self.next, self.next + len(ids)))
        self.next += len(ids)

    def clip(self, n_frames: int) -> None:
        """A clip: one step of time a frame, as text, so that frames and subwords share a clock."""
        self.slots[AUDIO].extend(range(len(self.ids), len(self.ids) + n_frames))
        self.text([AUDIO] * n_frames)

    def image(self, n_image_tokens: int) -> None:
        """A picture: CLS, then its pooled grid at one time with rows and columns on their axes."""
        grid = math.isqrt(n_image_tokens - 1)
        start = self.next
        self.slots[IMAGE].extend(range(len(self.ids), len(self.ids) + n_image_tokens))
        self.text([IMAGE])
        self.ids.extend([IMAGE] * (grid * grid))
        self.labels.extend([IGNORE_INDEX] * (grid * grid))
        first = start + 1
        self.positions.extend(
            (first, first + row, first + column) for row in range(grid) for column in range(grid)
        )
        self.next = first + grid

    def document(self, *, answers: Sequence[tuple[int, int]] = (), truncated: int = 0) -> Document:
        """What was written, as tensors."""
        return Document(
            input_ids=torch.tensor(self.ids, dtype=torch.int64),
            labels=torch.tensor(self.labels, dtype=torch.int64),
            positions=torch.tensor(self.positions, dtype=torch.int64).reshape(-1, 3),
            image_slots=torch.tensor(self.slots[IMAGE], dtype=torch.int64),
            audio_slots=torch.tensor(self.slots[AUDIO], dtype=torch.int64),
            answers=tuple(answers),
            truncated=truncated,
        )


def render(
    turns: Sequence[Turn], *, n_image_tokens: int, max_seq_len: int, truncate: bool = False
) -> Document:
    """Render a conversation.

    turns: in order; only the last may lack an answer.
    truncate: shorten the last turn's text from its end by as much as is too long, and say so in
        `Document.truncated`. Media and answers are never cut.
    Raises TokenBudgetError when it does not fit, ValueError for an unanswered turn before the last.
    """
    if any(turn.answer is None for turn in turns[:-1]):
        raise ValueError("turns: only the last turn may lack an answer.")
    overflow = length(turns, n_image_tokens) - max_seq_len
    cut = max(0, overflow) if truncate else 0
    if overflow > 0 and (not truncate or cut > len(turns[-1].text)):
        raise TokenBudgetError(
            f"sequence: the conversation needs {overflow + max_seq_len} positions, at most {max_seq_len} fit; "
            f"remove {overflow} tokens of text, a picture or a clip."
        )
    writer = Writer()
    writer.text([BOS])
    answers: list[tuple[int, int]] = []
    for i, turn in enumerate(turns):
        writer.text([USER])
        for _ in range(turn.n_images):
            writer.image(n_image_tokens)
        for n_frames in turn.clips:
            writer.clip(n_frames)
        last = i == len(turns) - 1
        writer.text(list(turn.text)[: len(turn.text) - cut] if last else turn.text)
        writer.text([EOS, ASSISTANT])
        if turn.answer is not None:
            answers.append((len(writer.ids), len(writer.ids) + len(turn.answer)))
            writer.text([*turn.answer, EOS], learn=turn.learn)
    return writer.document(answers=answers, truncated=cut)


def render_text(ids: Sequence[int], *, max_seq_len: int) -> list[Document]:
    """Plain text as documents [BOS] text [EOS], every token but BOS a target.

    A text longer than max_seq_len is cut into pieces that share one token with the piece before, so that
    every token but BOS is a target exactly once.
    """
    whole = [BOS, *ids, EOS]
    documents = []
    for start in range(0, len(whole) - 1, max_seq_len - 1):
        writer = Writer()
        writer.text(whole[start : start + max_seq_len], learn=True)
        documents.append(writer.document())
    return documents


def length(turns: Sequence[Turn], n_image_tokens: int) -> int:
    """Positions that `render` needs for a conversation."""
    media = sum(turn.n_images * n_image_tokens + sum(turn.clips) for turn in turns)
    text = sum(len(turn.text) + 3 for turn in turns)
    return 1 + media + text + sum(len(turn.answer) + 1 for turn in turns if turn.answer is not None)
