"""The nearest neighbour: the floor that any encoder of pictures must be above."""

from __future__ import annotations

import numpy as np


def nearest(queries: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Index of the known row with the smallest squared distance to each query, int64 (n,); the first of equal ones.

    queries: (n, d), known: (m, d), any real numbers. Raises ValueError for no known rows or other widths.
    """
    if known.ndim != 2 or queries.ndim != 2 or not len(known) or known.shape[1] != queries.shape[1]:
        raise ValueError(
            f"queries, known: expected (n, d), (m, d), m > 0; got {queries.shape}, {known.shape}."
        )
    a, b = queries.astype(np.float64), known.astype(np.float64)
    # -|a - b|^2 without |a|^2, which is the same for every known row.
    return (2.0 * a @ b.T - (b * b).sum(axis=1)[None]).argmax(axis=1)
