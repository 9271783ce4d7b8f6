"""What a turn gives: chunks of text and PCM as they come, the whole reply, and its timings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from muomni.data.media import write_wav

Ended = Literal["end", "stop", "loop", "length", "context", "interrupted"]
"""Why a text is over: by itself, at a stop string, since it repeats itself, at its most tokens, where the context is
full, or by `stop`."""


@dataclass(frozen=True, eq=False)
class Audio:
    """Sound."""

    waveform: np.ndarray
    """float32 (n_samples,) in [-1, 1]; empty for none."""
    sample_rate: int
    """Hz."""

    def __len__(self) -> int:
        """Samples."""
        return len(self.waveform)

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.waveform) / self.sample_rate

    def save(self, path: Path | str) -> None:
        """Write it as 16-bit WAV. Raises OSError when that cannot be."""
        write_wav(path, self.waveform, self.sample_rate)


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
    """Until the first piece of text was there (encoders and prefill included)."""
    first_audio: float | None = None
    """Until the first samples were ready; None without speech."""
    total: float = 0.0
    """Until the end of the turn."""
    n_tokens: int = 0
    """Text tokens written."""
    n_frames: int = 0
    """Code frames spoken."""
    decode: float = 0.0
    """Spent in Thinker steps and choosing tokens after the first; a step is of all answers that are going on."""
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
    audio: Audio
    """What was said, empty without speech."""
    codes: np.ndarray
    """int64 (n_codebooks, n_frames) the speech was decoded from."""
    ended: Ended
    """Why the text is over."""
    spoken: bool
    """The speech ended by itself, not at its longest duration."""
    truncated: int = 0
    """Oldest whole turns that were forgotten to make room for this one."""
    unheard: float = 0.0
    """Seconds at the end of this turn's films whose sound was left out: of each, max_audio_samples are heard."""
    timings: dict[str, float | None] = field(default_factory=dict)
    """As Timings.to_dict gives them."""

    @property
    def finished(self) -> bool:
        """The text ended by itself or where it was to, not because there was no more room or somebody spoke."""
        return self.ended in ("end", "stop")


def collect(chunks: Iterable[Chunk]) -> tuple[str, np.ndarray]:
    """All text and all samples of a stream."""
    parts = list(chunks)
    empty = np.zeros(0, np.float32)
    return "".join(c.text for c in parts), np.concatenate([empty, *(c.pcm for c in parts)])
