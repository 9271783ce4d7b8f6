"""RMSNorm over the last axis."""

from __future__ import annotations

import torch
from muomni_kernels import rms_norm
from torch import nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. Source: Zhang and Sennrich, 2019."""

    def __init__(self, d_model: int, *, eps: float = 1e-6) -> None:
        """d_model: length of the normalised axis."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., d_model) -> the same shape and dtype."""
        return rms_norm(x, self.weight, eps=self.eps)
