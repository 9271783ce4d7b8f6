"""Recall at k of a group: the exact expectation over random distractors, without drawing any."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recall:
    """Recall at k among `group` candidates."""

    per_query: np.ndarray
    """(n,) float64: each query's probability of being right over the choice of distractors."""
    group: int
    """Candidates a query chooses from; smaller than asked when there are fewer items."""
    k: int = 1
    """The right one is among so many that are first."""

    @property
    def value(self) -> float:
        """Mean over queries."""
        return float(self.per_query.mean())

    @property
    def chance(self) -> float:
        """Value of a random choice."""
        return min(1.0, self.k / self.group)

    @property
    def n(self) -> int:
        """Queries."""
        return len(self.per_query)


def ranks(similarity: np.ndarray) -> np.ndarray:
    """How many wrong keys score at least as high as the right one, int64 (n,). Ties count against the model.

    similarity: (n queries, n keys), the right key of query i being key i.
    """
    scores = np.asarray(similarity, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"similarity: expected a square (n, n) with n > 0, got {scores.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError("similarity: holds non-finite values; a rank would be meaningless.")
    return (scores >= np.diagonal(scores)[:, None]).sum(axis=1) - 1


def recall(similarity: np.ndarray, *, k: int = 1, group: int = 64, alike: np.ndarray | None = None) -> Recall:
    """R@k of a query against its own key and group - 1 keys of other items, exact over all choices.

    A query that r of its m wrong keys beat is right when fewer than k of those r are among the distractors, a
    hypergeometric chance: sum over j < k of C(r, j) C(m - r, g - 1 - j) / C(m, g - 1). So no draws and no seed
    are needed.
    similarity: (n queries, n keys). alike: (n, n) bool, the other items' keys that are right for a query as well, such
    as captions of the same words: they are nobody's distractors. Raises ValueError for k below 1 and fewer than 2
    candidates.
    """
    if group < 2 or k < 1:
        raise ValueError(f"group, k: expected at least 2 candidates and k of 1 or more, got {group}, {k}.")
    beaten = ranks(similarity)
    wrong = np.full(len(beaten), len(beaten) - 1)
    if alike is not None:
        others = alike & ~np.eye(len(beaten), dtype=bool)
        scores = np.asarray(similarity, dtype=np.float64)
        beaten -= (others & (scores >= np.diagonal(scores)[:, None])).sum(axis=1)
        wrong -= others.sum(axis=1)
    group = min(group, 1 + int(wrong.min()))

    @functools.cache
    def right(r: int, m: int) -> float:
        ways = sum(math.comb(r, j) * math.comb(m - r, group - 1 - j) for j in range(min(k, group)))
        return ways / math.comb(m, group - 1)

    pairs = zip(beaten.tolist(), wrong.tolist(), strict=True)
    return Recall(np.array([right(r, m) for r, m in pairs]), group, k)


def equal(captions: Sequence[Hashable]) -> np.ndarray:
    """(n, n) bool: which are the same, `recall`'s alike."""
    number = {caption: i for i, caption in enumerate(captions)}
    numbers = np.array([number[caption] for caption in captions])
    return numbers[:, None] == numbers[None]
