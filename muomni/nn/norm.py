"""RMSNorm over the last axis, alone or joined with the residual addition before it."""

from __future__ import annotations

import torch
from muomni_kernels import add_rms_norm, rms_norm
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

    def add(self, residual: torch.Tensor, branch: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a branch's output, if any, to the residual stream (..., d_model): its norm, and the new stream."""
        if branch is None:
            return self(residual), residual
        return add_rms_norm(branch, residual, self.weight, eps=self.eps)
