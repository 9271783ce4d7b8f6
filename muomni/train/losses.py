"""Losses as sums over valid targets; the loop divides once by the step's count."""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional as F

from muomni.tokens import IGNORE_INDEX


def n_targets(labels: torch.Tensor) -> torch.Tensor:
    """Labels that are targets, () int64."""
    return (labels != IGNORE_INDEX).sum()


def ctc_loss(
    logits: torch.Tensor, targets: torch.Tensor, *, input_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> torch.Tensor:
    """Summed CTC loss in nats; symbol 0 is the blank.

    logits: (B, T, n_symbols); targets: (B, S) int64 padded with anything; lengths: (B,) int64 on the CPU.
    An item of target length 0 and input length 0 costs nothing. Targets that do not fit are infinite here:
    the stage leaves them out beforehand and counts them. Source: Graves et al., 2006.
    """
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank=0, reduction="sum")


def ctc_positions(target: list[int]) -> int:
    """CTC positions a target needs: one a symbol, and a blank between two equal ones."""
    return len(target) + sum(a == b for a, b in itertools.pairwise(target))


def contrastive_loss(a: torch.Tensor, b: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
    """Summed symmetric InfoNCE of matching rows, nats. Depends on the whole batch: not split-invariant.

    a, b: (n, d) unit rows; scale: () positive, the inverse temperature.
    Returns the sum over n of the mean of both directions. Source: Radford et al., CLIP, 2021.
    """
    # One small matrix serves both directions: for so few rows that is faster than the head's chunked loss twice.
    logits = (scale * a @ b.T).float()
    return 0.5 * (logits.logsumexp(0) + logits.logsumexp(1)).sum() - logits.diagonal().sum()
