"""Choosing ids from logits: greedy, or sampled with temperature, top-k, top-p and a seed per request."""

from __future__ import annotations

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

    def __post_init__(self) -> None:
        """Reject values outside their range."""
        if not 0.0 <= self.temperature < float("inf"):
            raise SamplingError(f"temperature: expected 0 or more, got {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise SamplingError(f"top_k: expected at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise SamplingError(f"top_p: expected a number in (0, 1], got {self.top_p}.")


class Sampler:
    """One request's choices: its settings, its random stream, and the ids it may never choose."""

    def __init__(
        self, sampling: Sampling, *, seed: int, device: torch.device, forbidden: Sequence[int] = ()
    ) -> None:
        """seed starts a generator of this request alone; forbidden ids get no probability at all."""
        self.sampling, self.device = sampling, device
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._forbidden = torch.tensor(list(forbidden), dtype=torch.int64, device=device)

    def __call__(self, logits: Tensor) -> Tensor:
        """Choose one id a row: logits (..., V) any float -> int64 (...). The logits are not modified."""
        scores = logits.float()
        if len(self._forbidden):
            scores = scores.index_fill(-1, self._forbidden, float("-inf"))
        if self.sampling.temperature == 0.0:
            return scores.argmax(dim=-1)
        kept = keep_likely(
            scores / self.sampling.temperature, top_k=self.sampling.top_k, top_p=self.sampling.top_p
        )
        rows = kept.softmax(dim=-1).reshape(-1, kept.shape[-1])
        return torch.multinomial(rows, 1, generator=self._generator).reshape(kept.shape[:-1])


def keep_likely(logits: Tensor, *, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits (..., V) with every id outside top-k, then outside top-p, at -inf; at least one id stays.

    top-p is taken over the probabilities that top-k leaves. Ties at the k-th place are resolved by
    sorting order, so exactly k ids stay.
    """
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
