"""How a turn is to be answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from muomni.errors import UserError
from muomni.infer.sampling import Sampling
from muomni.infer.stops import Loops, Stops

SPEECH_TEMPERATURE = 0.2
"""Default temperature of the Talker: of 0 to 0.7 the one that is understood best (docs/LOG.md)."""
SPEECH_TOP_K = 64
"""Codes the Talker chooses from."""


class RequestError(UserError, ValueError):
    """A request that asks for nothing, or for what cannot be done."""


@dataclass(frozen=True, kw_only=True)
class TurnSettings:
    """The keyword arguments of `Session.chat` and `stream` beside what is said."""

    speak: bool = True
    """Say the answer too."""
    max_new_tokens: int = 96
    """Longest answer."""
    stop: str | Sequence[str] | None = ()
    """Strings that end the text, and are no part of it."""
    max_repeats: int = 4
    """Ends an answer that goes in circles: the same tokens so many times over, at least 16 in all; 0: never."""
    temperature: float = 0.0
    """Of the text; this and the next four as in `Sampling`."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    speech_temperature: float = SPEECH_TEMPERATURE
    """Of the speech codes."""
    voice: str | None = None
    """One of `Session.voices`; None for the first."""
    seed: int = 0
    """The same request with the same seed has the same answer, whatever else is being answered."""

    def __post_init__(self) -> None:
        """Reject what cannot be. Raises RequestError, SamplingError."""
        for name in ("max_new_tokens", "max_repeats", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise RequestError(f"{name}: expected a whole number, got {value!r}.")
        if self.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}.")
        if self.max_repeats < 0 or self.max_repeats == 1:
            raise RequestError(f"max_repeats: expected 0, or at least 2, got {self.max_repeats}.")
        if not all(isinstance(stop, str) for stop in self._stops):
            raise RequestError(f"stop: expected a string or several, got {self.stop!r}.")
        _ = self.writing, self.speaking

    @property
    def _stops(self) -> Sequence[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or ()

    @property
    def writing(self) -> Sampling:
        """How text is chosen."""
        return Sampling(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )  # fmt: skip

    @property
    def speaking(self) -> Sampling:
        """How codes are chosen."""
        return Sampling(temperature=self.speech_temperature, top_k=SPEECH_TOP_K)

    @property
    def loops(self) -> Loops:
        """What ends a text that repeats itself."""
        return Loops(self.max_repeats)

    @property
    def stops(self) -> Stops:
        """What ends the text."""
        return Stops(self._stops)
