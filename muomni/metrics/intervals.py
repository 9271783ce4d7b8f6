"""Bootstrap intervals of a mean or of a ratio of sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    *,
    n_resamples: int = 1_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of sum(values) / sum(weights), items resampled with replacement.

    values: (n,) per-item sums (errors, nats); weights: (n,) per-item units (characters, tokens), or None
    for the plain mean. Returns (low, high). Source: Efron, 1979.
    Raises ValueError for no items or another number of weights.
    """
    numerators = np.asarray(values, dtype=np.float64)
    units = np.ones_like(numerators) if weights is None else np.asarray(weights, dtype=np.float64)
    if numerators.ndim != 1 or not len(numerators) or units.shape != numerators.shape:
        raise ValueError(
            f"values, weights: expected (n,) both with n > 0, got {numerators.shape}, {units.shape}."
        )
    generator = np.random.default_rng(seed)
    n = len(numerators)
    # The counts of a resample of n items are multinomial: (n_resamples, n) without an index table.
    counts = generator.multinomial(n, np.full(n, 1.0 / n), size=n_resamples)
    total = counts @ units
    means = (counts @ numerators)[total > 0] / total[total > 0]
    if not len(means):
        raise ValueError("weights: every resample weighs nothing; give positive weights.")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
