"""Recall at k of a group: the exact expectation over random distractors, without drawing any."""

from __future__ import annotations

import math
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


def recall(similarity: np.ndarray, *, k: int = 1, group: int = 64) -> Recall:
    """R@k of a query against its own key and group - 1 keys of other items, exact over all choices.

    A query that r of the n - 1 wrong keys beat is right when fewer than k of those r are among the distractors, a
    hypergeometric chance: sum over j < k of C(r, j) C(n - 1 - r, g - 1 - j) / C(n - 1, g - 1). So no draws and no seed
    are needed.
    similarity: (n queries, n keys). Raises ValueError for k below 1 and fewer than 2 candidates.
    """
    if group < 2 or k < 1:
        raise ValueError(f"group, k: expected at least 2 candidates and k of 1 or more, got {group}, {k}.")
    beaten = ranks(similarity)
    n = len(beaten)
    group = min(group, n)
    choices = math.comb(n - 1, group - 1)
    of_rank = {
        r: sum(math.comb(r, j) * math.comb(n - 1 - r, group - 1 - j) for j in range(min(k, group))) / choices
        for r in set(beaten.tolist())
    }
    return Recall(np.array([of_rank[r] for r in beaten.tolist()]), group, k)
