"""What a turn gives: chunks of text and PCM as they come, the whole reply, and its timings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np


@dataclass(frozen=True)
class Chunk:
    """One piece of a streaming turn."""

    text: str
    """New whole characters; may be empty."""
    pcm: np.ndarray
    """New samples, float32 (n,) in [-1, 1]; may be empty."""


@dataclass(kw_only=True)
class Timings:
    """When things happened, seconds from the call."""

    first_text: float = 0.0
    """Until the first text token was chosen (encoders and prefill included)."""
    first_audio: float | None = None
    """Until the first samples were ready; None without speech."""
    total: float = 0.0
    """Until the end of the turn."""
    n_tokens: int = 0
    """Text tokens decoded after the prefill."""
    n_frames: int = 0
    """Code frames spoken."""
    decode: float = 0.0
    """Spent in Thinker steps and in choosing tokens after the prefill."""
    speech: float = 0.0
    """Spent in Talker, codec and vocoder."""
    audio_seconds: float = 0.0
    """Duration of the speech."""

    @property
    def tokens_per_second(self) -> float | None:
        """Text tokens over the time spent decoding them; None for no token."""
        return self.n_tokens / self.decode if self.n_tokens else None

    @property
    def rtf(self) -> float | None:
        """Real-time factor: time spent on speech over its duration; None without speech."""
        return self.speech / self.audio_seconds if self.audio_seconds > 0 else None

    def to_dict(self) -> dict[str, float | None]:
        """All of it as plain numbers, for JSON."""
        values = asdict(self) | {"tokens_per_second": self.tokens_per_second, "rtf": self.rtf}
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One finished turn."""

    text: str
    waveform: np.ndarray
    """float32 (n_samples,) in [-1, 1]; empty without speech."""
    sample_rate: int
    """Hz."""
    codes: np.ndarray
    """int64 (n_codebooks, n_frames) the speech was decoded from."""
    finished: bool
    """The text ended by itself, not at max_new_tokens or the end of the context."""
    spoken: bool
    """The speech ended by itself, not at its longest duration."""
    truncated: int = 0
    """Oldest whole turns that were forgotten to make room for this one."""
    timings: dict[str, float | None] = field(default_factory=dict)
    """As Timings.to_dict gives them."""


def collect(chunks: Iterable[Chunk]) -> tuple[str, np.ndarray]:
    """All text and all samples of a stream."""
    parts = list(chunks)
    empty = np.zeros(0, np.float32)
    return "".join(c.text for c in parts), np.concatenate([empty, *(c.pcm for c in parts)])
