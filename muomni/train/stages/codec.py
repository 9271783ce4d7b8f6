"""Stage codec: log-mel frames through eight residual codebooks and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data import embedded
from muomni.data.audio import audio_frames
from muomni.data.batch import permutation
from muomni.models.codec import Codec
from muomni.train.stage import Figure, Parts, StageBase, generator

CROP = 16
"""Code frames of a training crop (1.28 s)."""


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """Crops of clips."""

    frames: torch.Tensor
    """(B, T, factor * n_mels) float32 normalised log-mel."""
    n_active: int
    """Codebooks in use for this batch (codebook dropout)."""


def clips(split: embedded.Split, run: RunConfig) -> list[torch.Tensor]:
    """Normalised, stacked log-mel of every recording of a split, (n_frames, factor * n_mels) each."""
    items: list[embedded.SpeechItem | embedded.QuestionItem] = [*embedded.speech(split), *embedded.questions(split)]
    return [audio_frames(embedded.waveform(i), run.model.mel, factor=run.model.codec.factor) for i in items]


class CodecStage(StageBase):
    """Reconstruction of log-mel with any first k codebooks."""

    name = "codec"
    saved = ("codec",)

    def __init__(self, run: RunConfig) -> None:
        """Weights come from the configuration."""
        super().__init__(run)
        self.weights = {"l1": 1.0, "l2": 1.0, "commitment": run.model.codec.commitment_weight}

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """Compute every clip's frames once; start the codec from the seed."""
        self._clips: dict[str, list[torch.Tensor]] = {}
        return Parts(codec=Codec(run.model.codec, run.model.mel))
