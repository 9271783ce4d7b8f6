"""Stage vision: a ViT and a small text tower agree on which words belong to which picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data import embedded
from muomni.data.batch import Order, cumulative
from muomni.data.image import augment, to_float
from muomni.metrics.retrieval import recall_at_1
from muomni.models.vision import ContrastModel
from muomni.tokens import BOS, PAD
from muomni.train.losses import contrastive_loss
from muomni.train.stage import Figure, Parts, StageBase, generator
from muomni.train.stages.text import load_tokenizer

MAX_CAPTION = 32
"""Tokens of a caption, BOS included; what is longer is cut."""


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Pictures with their words."""

    images: torch.Tensor
    """(n, 3, S, S) float32 in [-1, 1]."""
    input_ids: torch.Tensor
    """(n * MAX_CAPTION,) int64, captions one after another, PAD at the end."""
    cu_seqlens: torch.Tensor
    """int32; segment i < n is caption i, the rest is padding."""
    n_tokens: int
    """Caption tokens that are not padding."""


class VisionStage(StageBase):
    """Image-caption contrast. The loss compares within a batch: splitting a batch changes it."""

    name = "vision"
    parents = ("text",)
    saved = ("contrast",)
    weights = {"contrast": 1.0}

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """Read every picture once (uint8 in memory), encode the words, start the towers from the seed."""
        self.tokenizer = load_tokenizer(root, run.model.thinker.vocab_size)
        self._data: dict[str, tuple[torch.Tensor, list[list[list[int]]]]] = {}
        model = ContrastModel(run.model.vision, vocab_size=run.model.thinker.vocab_size)
        return Parts(contrast=model)
