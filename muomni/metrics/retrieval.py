"""Recall at 1 of a group: the exact expectation over random distractors, without drawing any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recall:
    """Recall at 1 among `group` candidates."""

    per_query: np.ndarray
    """(n,) float64: each query's probability of being right over the choice of distractors."""
    group: int
    """Candidates a query chooses from; smaller than asked when there are fewer items."""

    @property
    def value(self) -> float:
        """Mean over queries."""
        return float(self.per_query.mean())

    @property
    def chance(self) -> float:
        """Value of a random choice."""
        return 1.0 / self.group

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


def recall_at_1(similarity: np.ndarray, *, group: int = 64) -> Recall:
    """R@1 of a query against its own key and group - 1 keys of other items, exact over all choices.

    A query that r of the n - 1 wrong keys beat is right with C(n - 1 - r, g - 1) / C(n - 1, g - 1),
    the chance that none of them is among the distractors; so no draws and no seed are needed.
    similarity: (n queries, n keys).
    """
    if group < 2:
        raise ValueError(f"group: expected at least 2 candidates, got {group}.")
    worse = ranks(similarity)
    n = len(worse)
    group = min(group, n)
    right = np.ones(n)
    for drawn in range(group - 1):
        right *= np.clip(n - 1 - worse - drawn, 0, None) / (n - 1 - drawn)
    return Recall(right, group)
