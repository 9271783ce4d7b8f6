"""One held-out figure: a value with its interval, and what a trivial method gets on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from muomni.metrics.intervals import bootstrap_interval


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the report."""

    name: str
    """Identifier, for example text.bits_per_byte.bigram."""
    what: str
    """The same in words."""
    value: float
    baseline: float
    baseline_name: str
    better: Literal["lower", "higher"]
    n: int
    """Held-out items, the unit the interval resamples."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the value."""
    unit: str
    seed: int = 0
    """Seed of the bootstrap and of whatever is drawn."""

    @property
    def beats_baseline(self) -> bool:
        """Whether the value is better than the baseline."""
        return self.value < self.baseline if self.better == "lower" else self.value > self.baseline

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report."""
        return asdict(self) | {"interval": list(self.interval), "beats_baseline": self.beats_baseline}


def ratio(
    name: str,
    what: str,
    *,
    sums: Sequence[float] | np.ndarray,
    units: Sequence[float] | np.ndarray | None = None,
    baseline: float,
    baseline_name: str,
    unit: str,
    better: Literal["lower", "higher"] = "lower",
    seed: int = 0,
) -> Figure:
    """A figure that is sum(sums) / sum(units) over items; units None: the mean of the items."""
    weights = np.ones(len(sums)) if units is None else np.asarray(units, dtype=np.float64)
    return Figure(
        name=name, what=what, value=float(np.sum(sums) / weights.sum()), baseline=float(baseline),
        baseline_name=baseline_name, better=better, n=len(sums),
        interval=bootstrap_interval(sums, weights, seed=seed), unit=unit, seed=seed,
    )  # fmt: skip
