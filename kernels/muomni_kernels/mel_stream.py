"""log_mel of a waveform that arrives piece by piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from muomni_kernels.mel import as_waveform, log_mel


class StreamingLogMel:
    """Frames as soon as their samples are there, bit for bit those of log_mel over the whole waveform.

    The state is the last samples that a coming frame still sees: at most n_fft - hop, rounded up to whole hops, and
    a part of a hop.
    """

    def __init__(self, *, n_fft: int = 400, hop_length: int = 160, **options: Any) -> None:
        """options: those of log_mel, but for padding, log, cu_samples and out.

        Raises ValueError for options that need the whole waveform: padding other than "causal", log other than "ln".
        """
        padding, log = options.pop("padding", "causal"), options.pop("log", "ln")
        if padding != "causal" or log != "ln":
            raise ValueError(
                "padding, log: a stream knows neither its end nor its maximum; expected 'causal' and 'ln', got "
                f"{padding!r} and {log!r}."
            )
        self.hop_length = hop_length
        # Frames of the history alone, computed again with every push and dropped.
        self._n_seen = -(-(n_fft - hop_length) // hop_length)
        self._options = {**options, "n_fft": n_fft, "hop_length": hop_length}
        self._empty = log_mel(torch.zeros(0), **self._options)
        self.reset()

    def reset(self) -> None:
        """Forget the waveform so far: the next push starts a new one."""
        self._pending: torch.Tensor | None = None
        self._n_past = 0
        self._finished = False

    def push(self, chunk: np.ndarray | torch.Tensor) -> torch.Tensor:
        """The next samples (n,), float32 or int16 as all of the stream -> the frames they complete (m, n_mels) float32.

        Raises ValueError for another shape or dtype than before, a sample that is not finite, and after `finish`.
        """
        if self._finished:
            raise ValueError("chunk: this stream is finished; reset it to start another.")
        samples = as_waveform(chunk, None).detach()
        if samples.ndim != 1:
            raise ValueError(f"chunk: expected (n_samples,), got {tuple(samples.shape)}.")
        # Kept, it would spoil every frame to come.
        if samples.is_floating_point() and not bool(samples.isfinite().all()):
            raise ValueError("chunk: holds a sample that is not finite; leave it out or push zeros instead.")
        if self._pending is not None:
            if samples.dtype != self._pending.dtype:
                raise ValueError(f"chunk: expected {self._pending.dtype} as before, got {samples.dtype}.")
            samples = torch.cat([self._pending, samples])
        n_new = len(samples) // self.hop_length - self._n_past
        return self._frames(samples, max(0, n_new) * self.hop_length)

    def finish(self) -> torch.Tensor:
        """The frame of a last part of a hop, zeros behind it, if there is one: (0 or 1, n_mels). Ends the stream."""
        if self._finished or self._pending is None:
            self._finished = True
            return self._empty
        self._finished = True
        samples = self._pending
        return self._frames(samples, len(samples) - self._n_past * self.hop_length)

    def _frames(self, samples: torch.Tensor, n_new: int) -> torch.Tensor:
        """Frames of n_new samples behind the history; the state moves on."""
        past = self._n_past * self.hop_length
        frames = self._empty
        if n_new:
            frames = log_mel(samples[: past + n_new], **self._options)[self._n_past :]
        kept = min(self._n_seen, self._n_past + n_new // self.hop_length)
        first = past + n_new // self.hop_length * self.hop_length - kept * self.hop_length
        self._pending, self._n_past = samples[first:].clone(), kept
        return frames
