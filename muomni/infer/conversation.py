"""What was said so far: turns with their media features, rendered as in training and cut by whole turns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.config import ModelConfig, TokenBudgetError
from muomni.data.template import Document, Turn, render


@dataclass(frozen=True, kw_only=True)
class Said:
    """One turn of the user, with the assistant's answer once it is known."""

    turn: Turn
    images: Tensor | None = None
    """(n, d_model) projected picture features in the order of the placeholders."""
    clips: Tensor | None = None
    """(n, d_model) projected clip features in the order of the placeholders."""


class Conversation:
    """The turns a session remembers; a turn is kept or forgotten whole, media included."""

    def __init__(self, config: ModelConfig, *, max_positions: int) -> None:
        """Nothing said yet. max_positions: rotary positions there are."""
        self.config, self._max_positions = config, max_positions
        self.turns: list[Said] = []

    def ask(self, said: Said, *, reserve: int) -> int:
        """Add the user's turn and forget the oldest turns until it and `reserve` tokens of answer fit.

        Returns how many were forgotten. A turn that is long itself leaves its answer less than `reserve`.
        Raises TokenBudgetError when not even one token of answer fits; the conversation is then unchanged.
        """
        # One answered token and its EOS are the least a turn is worth.
        alone = self._length([said]) + 2
        if alone > self.config.max_seq_len:
            n_image, n_audio = said.turn.n_images * self.config.vision.n_image_tokens, sum(said.turn.clips)
            raise TokenBudgetError(
                f"sequence: {alone - n_image - n_audio} text + {n_image} image + {n_audio} audio tokens "
                f"= {alone}, at most {self.config.max_seq_len} fit; "
                f"remove {alone - self.config.max_seq_len} tokens."
            )
        kept = [*self.turns, said]
        while len(kept) > 1 and self._length(kept) + reserve + 1 > self.config.max_seq_len:
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
        """All remembered picture and clip features, in the order of the document's slots."""
        images = [s.images for s in self.turns if s.images is not None]
        clips = [s.clips for s in self.turns if s.clips is not None]
        return torch.cat(images) if images else None, torch.cat(clips) if clips else None

    def _render(self, turns: list[Said]) -> Document:
        return render(
            [s.turn for s in turns],
            n_image_tokens=self.config.vision.n_image_tokens,
            max_seq_len=self.config.max_seq_len,
        )

    def _length(self, turns: list[Said]) -> int:
        # Rendered without a limit: only the length is asked for.
        return len(
            render(
                [s.turn for s in turns], n_image_tokens=self.config.vision.n_image_tokens, max_seq_len=1 << 40
            )
        )
