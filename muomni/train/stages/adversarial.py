"""Least-squares adversarial losses (Mao et al., 2017) with feature matching: of what was made, and of its judges.

Judges are modules that give `Judged` (models/discriminators.py) of a batch.
"""

from __future__ import annotations

import torch
from torch import nn


def judged(judges: nn.Module, made: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """Squared distance of recordings' scores to 1 and of made ones' to 0: means of judges, summed over crops."""
    losses = [
        (1.0 - real).square().mean(1).sum() + fake.square().mean(1).sum()
        for (real, _), (fake, _) in zip(judges(recorded), judges(made), strict=True)
    ]
    return torch.stack(losses).mean()


def fooled(judges: nn.Module, made: torch.Tensor, recorded: torch.Tensor) -> dict[str, torch.Tensor]:
    """Squared distance of made ones' scores to 1, and L1 distance of features: means of judges, summed over crops."""
    with torch.no_grad():
        real = judges(recorded)
    # What is learnt from them changes none of them.
    fixed = {name: p.detach() for name, p in judges.named_parameters()}
    fake = torch.func.functional_call(judges, fixed, (made,))
    scores = [(1.0 - score).square().mean(1).sum() for score, _ in fake]
    features = [
        (a - b).abs().flatten(1).mean(1).sum()
        for (_, ours), (_, theirs) in zip(fake, real, strict=True) for a, b in zip(ours, theirs, strict=True)
    ]  # fmt: skip
    return {"fooled": torch.stack(scores).mean(), "features": torch.stack(features).mean()}
