"""Choosing ids from logits on the device: greedy, or with temperature, top-k, top-p, min-p and a seed per request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real

import torch
from torch import Tensor

from muomni.errors import UserError

LEAST_TEMPERATURE = 1e-4

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 over the golden ratio, as int64."""


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
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if not isinstance(value, Real) and not (value is None and name in ("top_p", "min_p")):
                raise SamplingError(f"{name}: expected a number, got {value!r}.")
        # Less is greedy in all but name, and float32 soon takes it for 0.
        if self.temperature and not LEAST_TEMPERATURE <= self.temperature < float("inf"):
            raise SamplingError(
                f"temperature: expected 0, or at least {LEAST_TEMPERATURE:g}, got {self.temperature}."
            )
        if self.top_k is not None and (not isinstance(self.top_k, Integral) or self.top_k < 1):
            raise SamplingError(f"top_k: expected a whole number of at least 1, got {self.top_k!r}.")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise SamplingError(f"top_p: expected a number in (0, 1], got {self.top_p}.")
        if self.min_p is not None and not 0.0 < self.min_p <= 1.0:
            raise SamplingError(f"min_p: expected a number in (0, 1], got {self.min_p}.")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise SamplingError(
                f"repetition_penalty: expected a number above 0, got {self.repetition_penalty}."
            )


class Sampler:
    """Chooses one id a row. Each row is a request's: settings, seed and choices so far are its own.

    What a row chooses depends on its own logits, settings, seed and count of choices alone, and is made on the device
    without a word from the host, so that it can be recorded and replayed.
    """

    def __init__(self, n_rows: int = 1, *, device: torch.device, forbidden: Sequence[int] = ()) -> None:
        """n_rows: requests there may be at once, all greedy until `replace`. forbidden: ids that are never chosen."""
        self._how = [Sampling()] * n_rows
        self._numbers = torch.ones(3, n_rows, 1, device=device)
        self._state = torch.zeros(2, n_rows, 1, dtype=torch.int64, device=device)
        self._forbidden = torch.tensor(list(forbidden), dtype=torch.int64, device=device)
        self._chosen: Tensor | None = None

    def replace(self, row: int, sampling: Sampling, *, seed: int) -> None:
        """Begin a new request in a row."""
        self._how[row] = sampling
        numbers = (sampling.temperature, sampling.repetition_penalty, math.log(sampling.min_p or 1.0))
        self._numbers[:, row, 0] = torch.tensor(numbers, dtype=torch.float32)
        self._state[:, row, 0] = torch.tensor([_on_host(seed), 0])
        if self._chosen is not None:
            self._chosen[row] = False

    def snapshot(self) -> Tensor:
        """How far the rows' random numbers have come, to be put back by `restore`."""
        return self._state.clone()

    def restore(self, snapshot: Tensor) -> None:
        """Draw again what was drawn since."""
        self._state.copy_(snapshot)

    def way(self, rows: Sequence[int]) -> tuple[Sampling, ...]:
        """What differs in the work for these rows: whatever is recorded holds for this alone."""
        return tuple(_form(self._how[row]) for row in rows)

    def __call__(self, logits: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Choose one id a row: logits (B, V) any float, of `rows` or of all -> int64 (B,). They are not modified."""
        rows = range(len(self._how)) if rows is None else rows
        scores = logits.float()
        if len(self._forbidden):
            scores = scores.index_fill(-1, self._forbidden, float("-inf"))
        ways = self.way(rows)
        if len(set(ways)) == 1:
            return self._alike(scores, rows, ways[0])
        # Rows of other settings are other work; with them a row must give what it gives alone.
        ids = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
        for way in dict.fromkeys(ways):
            own = [i for i, its in enumerate(ways) if its == way]
            ids[own] = self._alike(scores[own], [rows[i] for i in own], way)
        return ids

    def _alike(self, scores: Tensor, rows: Sequence[int], way: Sampling) -> Tensor:
        whole = list(rows) == list(range(len(self._how)))
        at = slice(None) if whole else torch.tensor(list(rows), device=scores.device)
        temperature, penalty, least = self._numbers[:, at]
        if way.repetition_penalty != 1.0:
            if self._chosen is None:
                self._chosen = torch.zeros(
                    len(self._how), scores.shape[1], dtype=torch.bool, device=scores.device
                )
            scores = torch.where(
                self._chosen[at], torch.where(scores > 0, scores / penalty, scores * penalty), scores
            )
        if way.temperature == 0.0:
            ids = scores.argmax(dim=-1)
        else:
            seeds, counts = self._state[:, at]
            kept, names = keep_likely(
                scores / temperature,
                top_k=way.top_k,
                top_p=way.top_p,
                least=None if way.min_p is None else least,
            )
            race = kept + gumbel(seeds, counts, names)
            ids = names.expand_as(kept).gather(-1, race.argmax(-1, keepdim=True))[:, 0]
            if whole:
                self._state[1] += 1
            else:
                self._state[1, at] = counts + 1
        if way.repetition_penalty != 1.0 and self._chosen is not None:
            self._chosen[torch.tensor(list(rows), device=ids.device), ids] = True
        return ids


def keep_likely(
    logits: Tensor, *, top_k: int | None = None, top_p: float | None = None, least: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What may be chosen of logits (B, V): logits (B, k), -inf for what may not, and their ids, (B, k) or (1, V).

    At least one id stays. top-p is taken over the probabilities that top-k leaves. least: (B, 1) logarithm of min-p,
    a share of the greatest probability. Of equal logits at the k-th place any may stay, but exactly k do.
    """
    n_ids = logits.shape[-1]
    if top_k is not None and top_k < n_ids:
        kept, ids = logits.topk(top_k)
    elif top_p is not None:
        kept, ids = logits.sort(dim=-1, descending=True, stable=True)
    else:
        kept, ids = logits, torch.arange(n_ids, device=logits.device)[None]
    if least is not None:
        kept = kept.masked_fill(kept < kept.amax(-1, keepdim=True) + least, float("-inf"))
    if top_p is not None:
        p = kept.softmax(dim=-1)
        # The id that crosses p is kept: the mass before it is what is compared.
        kept = kept.masked_fill(p.cumsum(dim=-1) - p >= top_p, float("-inf"))
    return kept, ids


def gumbel(seeds: Tensor, counts: Tensor, ids: Tensor) -> Tensor:
    """Noise (B, k) whose sum with logits has its maximum at an id with that id's probability (Gumbel, 1954).

    seeds, counts: (B, 1) int64; ids: (B, k) or (1, k) int64. A number of its own for each (seed, count, id), by the
    finaliser of splitmix64 (Steele, Lea and Flood, 2014), the same on every device.
    """
    mixed = _mix(_mix(seeds + counts * _GOLDEN) + ids * _GOLDEN)
    # 23 bits: their middle is a float32, and neither 0 nor 1.
    uniform = (((mixed >> 41) & 0x7FFFFF).float() + 0.5) * 2.0**-23
    return -(-uniform.log()).log()


def _mix(x: Tensor) -> Tensor:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64))):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _on_host(seed: int) -> int:
    """Any integer as int64, spread so that neighbouring seeds share nothing."""
    seed = int(seed)
    return int(_mix(torch.tensor((seed + (1 << 63)) % (1 << 64) - (1 << 63)) * 1))


def _form(how: Sampling) -> Sampling:
    """Settings that lead to the same work, their numbers kept on the device left out."""
    if how.temperature == 0.0:
        return Sampling(repetition_penalty=1.0 if how.repetition_penalty == 1.0 else 2.0)
    return replace(
        how, temperature=1.0, min_p=None if how.min_p is None else 1.0,
        repetition_penalty=1.0 if how.repetition_penalty == 1.0 else 2.0,
    )  # fmt: skip
