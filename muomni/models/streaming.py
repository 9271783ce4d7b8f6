"""What turns log-mel into a waveform piece by piece, trained or not."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn


class StreamingVocoder(nn.Module):
    """Natural-log mel power at 100 Hz -> 16 kHz waveform; streaming equals offline."""

    @abstractmethod
    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """A whole clip (T, n_mels) -> float32 (T * hop_length,)."""

    @abstractmethod
    def new_state(self) -> Any:
        """The state before the first frame."""

    @abstractmethod
    def step(self, log_mel: torch.Tensor, state: Any, *, flush: bool = False) -> torch.Tensor:
        """New frames (n, n_mels) -> the samples that are now finished, float32; moves the state on.

        flush: also give out what was held back; the utterance is then over.
        """

    @abstractmethod
    def flush(self, state: Any) -> torch.Tensor:
        """The samples held back, float32."""
