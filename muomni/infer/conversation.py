"""What was said so far: turns with their media features, rendered as in training and cut by whole turns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.config import ModelConfig, TokenBudgetError
from muomni.data.template import Document, Turn, length, render


@dataclass(frozen=True, kw_only=True)
class Said:
    """One turn of the user, with the assistant's answer once it is known."""

    turn: Turn
    images: Tensor | None = None
    """(n, d_model) projected features of pictures, then of films' frames: the order of the placeholders."""
    clips: Tensor | None = None
    """(n, d_model) projected features of clips, then of films' sound: the order of the placeholders."""
    unheard: float = 0.0
    """Seconds of films' sound that did not fit and are not among the clips."""


class Conversation:
    """The turns a session remembers; a turn is kept or forgotten whole, media included."""

    def __init__(self, config: ModelConfig, *, max_positions: int) -> None:
        """Nothing said yet. max_positions: rotary positions there are."""
        self.config, self._max_positions = config, max_positions
        self.turns: list[Said] = []

    def check(self, turn: Turn) -> None:
        """Whether a turn alone leaves room for an answer.

        Raises TokenBudgetError when not even one token of it fits, or when the turn's films take more time than there
        are rotary positions.
        """
        # One answered token and its EOS are the least a turn is worth.
        alone = self._length([turn]) + 2
        if alone > self.config.max_seq_len:
            n_image, n_audio = turn.n_pictures * self.config.vision.n_image_tokens, turn.n_audio
            n_text = alone - n_image - n_audio - turn.n_heard
            raise TokenBudgetError(
                f"sequence: {n_text} text + {n_image} image + {n_audio} audio + {turn.n_heard} heard tokens "
                f"= {alone}, at most {self.config.max_seq_len} fit; "
                f"remove {alone - self.config.max_seq_len} tokens."
            )
        if (place := self._place([turn]) + 2) > self._max_positions:
            raise TokenBudgetError(
                f"sequence: its films take it to position {place}, there are {self._max_positions} "
                f"({self._max_positions / self.config.frame_rate:.0f} s); give a shorter film."
            )

    def ask(self, said: Said, *, reserve: int) -> int:
        """Add the user's turn and forget the oldest turns until it and `reserve` tokens of answer fit.

        Returns how many were forgotten. A turn that is long itself leaves its answer less than `reserve`.
        Raises TokenBudgetError as `check` does; the conversation is then unchanged.
        """
        self.check(said.turn)
        kept = [*self.turns, said]
        while len(kept) > 1 and not self._fits(kept, reserve + 1):
            del kept[0]
        forgotten = len(self.turns) + 1 - len(kept)
        self.turns = kept
        return forgotten

    def answer(self, ids: list[int]) -> None:
        """Complete the last turn with what was answered."""
        last = self.turns[-1]
        self.turns[-1] = dataclasses.replace(last, turn=dataclasses.replace(last.turn, answer=tuple(ids)))

    def document(self) -> Document:
        """Everything remembered, as ids, positions and placeholder slots."""
        return self._render(self.turns)

    def features(self) -> tuple[Tensor | None, Tensor | None]:
        """All remembered features of pictures and of sound, in the order of the document's slots."""
        images = [s.images for s in self.turns if s.images is not None]
        clips = [s.clips for s in self.turns if s.clips is not None]
        return torch.cat(images) if images else None, torch.cat(clips) if clips else None

    def _render(self, turns: list[Said]) -> Document:
        return render(
            [s.turn for s in turns],
            n_image_tokens=self.config.vision.n_image_tokens,
            max_seq_len=self.config.max_seq_len,
        )

    def _fits(self, kept: list[Said], n_more: int) -> bool:
        turns = [said.turn for said in kept]
        return (
            self._length(turns) + n_more <= self.config.max_seq_len
            and self._place(turns) + n_more <= self._max_positions
        )

    def _length(self, turns: list[Turn]) -> int:
        return length(turns, self.config.vision.n_image_tokens)

    def _place(self, turns: list[Turn]) -> int:
        """The rotary position behind the turns."""
        # Rendered without a limit: only the positions are asked for.
        document = render(turns, n_image_tokens=self.config.vision.n_image_tokens, max_seq_len=1 << 40)
        return int(document.positions.max()) + 1
