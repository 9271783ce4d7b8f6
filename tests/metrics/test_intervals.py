"""Bootstrap intervals against the normal approximation."""

import numpy as np
import pytest

from muomni.metrics.intervals import bootstrap_interval


def test_interval_of_a_mean_matches_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(values, n_resamples=4_000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_ratio_weighs_items_by_their_units_and_repeats_under_a_seed() -> None:
    low, high = bootstrap_interval([1.0, 30.0], [10.0, 30.0], seed=3)
    assert 0.1 <= low <= 31 / 40 <= high <= 1.0
    assert bootstrap_interval([1.0, 30.0], [10.0, 30.0], seed=3) == (low, high)
    with pytest.raises(ValueError, match="n > 0"):
        bootstrap_interval([])
