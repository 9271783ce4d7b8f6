"""Fusion by placeholders: media features projected into the unified space, written onto their positions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from muomni.nn.init import linear
from muomni.nn.norm import RMSNorm


def place_features(embeds: torch.Tensor, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Write media features onto the placeholder positions of a packed row.

    embeds:   (T, D) token embeddings; not modified.
    features: (n, D) in reading order; converted to embeds' dtype.
    index:    (n,) int64 position of each feature; T (one past the end) marks padding, which is dropped.
    Returns (T, D). The real positions must be distinct.
    Raises ValueError when counts or widths differ: a partial write would train on the wrong picture
    without any symptom.
    """
    if index.ndim != 1 or features.ndim != 2 or len(index) != len(features):
        raise ValueError(
            f"index: expected ({len(features)},), one position a feature, got {tuple(index.shape)}; "
            f"count the placeholders."
        )
    if features.shape[1] != embeds.shape[1]:
        raise ValueError(
            f"features: expected width {embeds.shape[1]}, got {features.shape[1]}; project them first."
        )
    rows = torch.cat([embeds, embeds.new_zeros(1, embeds.shape[1])])
    return rows.index_copy(0, index, features.to(embeds.dtype))[: len(embeds)]


class Projector(nn.Module):
    """Encoder vectors -> the unified space: RMSNorm, then two linear layers with GELU between."""

    def __init__(self, d_in: int, d_out: int) -> None:
        """d_in: the encoder's width; d_out: the Thinker's."""
        super().__init__()
        self.norm = RMSNorm(d_in)
        self.inner = linear(d_in, d_out, bias=True)
        self.outer = linear(d_out, d_out, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., d_in) -> (..., d_out)."""
        return self.outer(F.gelu(self.inner(self.norm(x))))
