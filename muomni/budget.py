"""How the positions of one sequence are spent; the arithmetic is ModelConfig.budget."""

from __future__ import annotations

from dataclasses import dataclass

from muomni.errors import UserError


class TokenBudgetError(UserError, ValueError):
    """Text, images and audio of one sequence do not fit max_seq_len."""


@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """How one sequence's max_seq_len positions are spent."""

    n_text: int
    """Text and control tokens."""
    n_image: int
    """Image positions."""
    n_audio: int
    """Audio positions."""
    max_seq_len: int
    """Positions there are."""

    @property
    def total(self) -> int:
        """Positions used."""
        return self.n_text + self.n_image + self.n_audio

    @property
    def overflow(self) -> int:
        """Positions by which the sequence is too long; 0 when it fits."""
        return max(0, self.total - self.max_seq_len)
