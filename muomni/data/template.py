"""Turns rendered straight to token ids, labels, positions and placeholder slots.

    [BOS] { [USER] images clips films question [EOS] [ASSISTANT] answer [EOS] } ...

Behind a clip, and behind a film with sound, stands what the ear spells of it, closed by [HEARD]: a clip is heard twice,
as frames and as letters.

A film is its frames and its sound in order of time on one clock (TM-RoPE): s steps after its beginning are the sound
heard then and the frame seen then. The frame is written before the sound of its step; that the two share a position
is meant: they differ in what they are, and the order of writing decides what attends to what.

Control tokens are written here as ids and never as text, so a user cannot forge one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from muomni.config import TokenBudgetError
from muomni.tokens import ASSISTANT, AUDIO, BOS, EOS, HEARD, IGNORE_INDEX, IMAGE, USER


@dataclass(frozen=True, kw_only=True)
class Film:
    """When a film's frames are seen and how long it is heard, in steps of one audio position."""

    frames: Sequence[int]
    """Step of each frame, from the film's beginning and in order."""
    n_audio: int = 0
    """Audio positions of its sound track, one a step from the beginning on."""
    n_steps: int = 0
    """Steps of the whole film: the text after it is no earlier than its end."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a user gave and, if it is known, what the assistant answers."""

    text: Sequence[int] = ()
    """Token ids of the text; of a user's no control token is among them."""
    n_images: int = 0
    """Pictures, written before the clips."""
    clips: Sequence[int] = ()
    """Audio positions of each clip."""
    films: Sequence[Film] = ()
    """Films, written after the clips."""
    heard: Sequence[Sequence[int]] = ()
    """Token ids of what the ear spells of each clip, then of each film's sound; of those missing at the end, nothing.

    No more of them are written than the sound has positions. Of 11,949 true transcripts
    none has more than 0.82 times as many with 1,024 entries of the tokenizer, the mean is 0.42; misspelt ones have
    more.
    """
    answer: Sequence[int] | None = None
    """Token ids of the answer; None: the document ends with [ASSISTANT], ready to be continued."""
    learn: bool = True
    """Whether the answer and its EOS are targets."""

    @property
    def n_pictures(self) -> int:
        """Pictures and frames of films."""
        return self.n_images + sum(len(film.frames) for film in self.films)

    @property
    def n_audio(self) -> int:
        """Audio positions of clips and films."""
        return sum(self.clips) + sum(film.n_audio for film in self.films)

    @property
    def n_heard(self) -> int:
        """Positions of what the ear spells."""
        return sum(map(len, map(spelled, self.written)))

    @property
    def written(self) -> list[Sequence[int]]:
        """What is written of `heard`."""
        sounds = [*self.clips, *(film.n_audio for film in self.films if film.n_audio)]
        return [ids[:n] for ids, n in zip(self.heard, sounds, strict=False)]


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
    """(n_pictures * n_image_tokens,) int64: where the placeholders of pictures and films' frames are."""
    audio_slots: torch.Tensor
    """(n_audio,) int64: where the placeholders of clips and films' sound are."""
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
        self._sound(self.next, n_frames)
        self.next += n_frames

    def image(self, n_image_tokens: int) -> None:
        """A picture: CLS, then its pooled grid at one time with rows and columns on their axes."""
        grid = math.isqrt(n_image_tokens - 1)
        first = self.next + 1
        self._picture(self.next, first, grid)
        self.next = first + grid

    def film(self, film: Film, n_image_tokens: int) -> None:
        """A film: frames and sound in order of time; all of a frame is at the time of its step.

        A frame's rows and columns begin one behind its time, as a picture's behind its CLS. What follows is behind the
        film's end and behind all of its positions.
        """
        start, grid, n_heard = self.next, math.isqrt(n_image_tokens - 1), 0
        end = start + max(film.n_steps, film.n_audio)
        for step in film.frames:
            n_before = min(step, film.n_audio)
            self._sound(start + n_heard, n_before - n_heard)
            n_heard = n_before
            self._picture(start + step, start + step, grid)
            end = max(end, start + step + grid + 1)
        self._sound(start + n_heard, film.n_audio - n_heard)
        self.next = end

    def _picture(self, place: int, time: int, grid: int) -> None:
        """CLS at one place, the grid at one time with rows and columns from behind the place on."""
        self._placeholders(IMAGE, [(place, place, place)])
        corner = place + 1
        self._placeholders(
            IMAGE, [(time, corner + row, corner + column) for row in range(grid) for column in range(grid)]
        )

    def _sound(self, start: int, n_positions: int) -> None:
        self._placeholders(AUDIO, [(p, p, p) for p in range(start, start + n_positions)])

    def _placeholders(self, kind: int, positions: Sequence[tuple[int, int, int]]) -> None:
        self.slots[kind].extend(range(len(self.ids), len(self.ids) + len(positions)))
        self.ids.extend([kind] * len(positions))
        self.labels.extend([IGNORE_INDEX] * len(positions))
        self.positions.extend(positions)

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
            f"remove {overflow} tokens of text, a picture, a clip or a film."
        )
    writer = Writer()
    writer.text([BOS])
    answers: list[tuple[int, int]] = []
    for i, turn in enumerate(turns):
        writer.text([USER])
        for _ in range(turn.n_images):
            writer.image(n_image_tokens)
        heard = iter(turn.written)
        for n_frames in turn.clips:
            writer.clip(n_frames)
            writer.text(spelled(next(heard, ())))
        for film in turn.films:
            writer.film(film, n_image_tokens)
            if film.n_audio:
                writer.text(spelled(next(heard, ())))
        last = i == len(turns) - 1
        writer.text(list(turn.text)[: len(turn.text) - cut] if last else turn.text)
        writer.text([EOS, ASSISTANT])
        if turn.answer is not None:
            answers.append((len(writer.ids), len(writer.ids) + len(turn.answer)))
            writer.text([*turn.answer, EOS], learn=turn.learn)
    return writer.document(answers=answers, truncated=cut)


def spelled(ids: Sequence[int]) -> list[int]:
    """What the ear spells of the sound before it, and HEARD; nothing where it spells nothing."""
    return [*ids, HEARD] if ids else []


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
    media = sum(turn.n_pictures * n_image_tokens + turn.n_audio + turn.n_heard for turn in turns)
    text = sum(len(turn.text) + 3 for turn in turns)
    return 1 + media + text + sum(len(turn.answer) + 1 for turn in turns if turn.answer is not None)
