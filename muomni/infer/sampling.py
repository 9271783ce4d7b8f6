"""Choosing ids from logits: greedy, or sampled with temperature, top-k, top-p, min-p and a seed per request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.errors import UserError


class SamplingError(UserError, ValueError):
    """A sampling setting outside its range."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How ids are chosen."""

    temperature: float = 0.0
    """0: the most likely id (ties: the smallest). Otherwise divides the logits."""
    top_k: int | None = None
    """Only the k most likely ids."""
    top_p: float | None = None
    """Only the most likely ids whose probabilities first sum to p."""
    min_p: float | None = None
    """Only ids at least so probable, as a share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Positive logits of ids chosen before are divided by it, negative ones multiplied (Keskar et al., CTRL, 2019)."""

    def __post_init__(self) -> None:
        """Reject values outside their range."""
        if not 0.0 <= self.temperature < float("inf"):
            raise SamplingError(f"temperature: expected 0 or more, got {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise SamplingError(f"top_k: expected at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise SamplingError(f"top_p: expected a number in (0, 1], got {self.top_p}.")
        if self.min_p is not None and not 0.0 < self.min_p <= 1.0:
            raise SamplingError(f"min_p: expected a number in (0, 1], got {self.min_p}.")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise SamplingError(
                f"repetition_penalty: expected a number above 0, got {self.repetition_penalty}."
            )


class Sampler:
    """One request's choices: its settings, its random stream, and the ids it may never choose."""

    def __init__(
        self, sampling: Sampling, *, seed: int, device: torch.device, forbidden: Sequence[int] = ()
    ) -> None:
        """seed starts a generator of this request alone; forbidden ids get no probability at all."""
        self.sampling, self.device = sampling, device
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._forbidden = torch.tensor(list(forbidden), dtype=torch.int64, device=device)
        self._chosen: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Choose one id a row: logits (..., V) any float -> int64 (...). The logits are not modified.

        With a repetition penalty all calls must be of one shape.
        """
        how, scores = self.sampling, logits.float()
        if len(self._forbidden):
            scores = scores.index_fill(-1, self._forbidden, float("-inf"))
        if how.repetition_penalty == 1.0:
            return self._choose(scores)
        if self._chosen is None:
            self._chosen = torch.zeros_like(scores, dtype=torch.bool)
        r = how.repetition_penalty
        scores = torch.where(self._chosen, torch.where(scores > 0, scores / r, scores * r), scores)
        ids = self._choose(scores)
        self._chosen.scatter_(-1, ids[..., None], True)
        return ids

    def _choose(self, scores: Tensor) -> Tensor:
        how = self.sampling
        if how.temperature == 0.0:
            return scores.argmax(dim=-1)
        kept = keep_likely(scores / how.temperature, top_k=how.top_k, top_p=how.top_p, min_p=how.min_p)
        rows = kept.softmax(dim=-1).reshape(-1, kept.shape[-1])
        return torch.multinomial(rows, 1, generator=self._generator).reshape(kept.shape[:-1])


def keep_likely(
    logits: Tensor, *, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """Logits (..., V) with every id outside top-k, top-p or min-p at -inf; at least one id stays.

    top-p is taken over the probabilities that top-k leaves, min-p as a share of the greatest. Ties at the k-th place
    are resolved by sorting order, so exactly k ids stay.
    """
    if min_p is not None:
        least = logits.amax(-1, keepdim=True) + math.log(min_p)
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_k is None and top_p is None:
        return logits
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    drop = torch.zeros_like(ordered, dtype=torch.bool)
    if top_k is not None:
        drop[..., top_k:] = True
        ordered = ordered.masked_fill(drop, float("-inf"))
    if top_p is not None:
        p = ordered.softmax(dim=-1)
        # The id that crosses p is kept: the mass before it is what is compared.
        drop = drop | (p.cumsum(dim=-1) - p >= top_p)
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, ids, drop), float("-inf"))
