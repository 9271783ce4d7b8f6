"""The shape of both schedules, edges included; oracles are the published formulas at chosen steps."""

from __future__ import annotations

import math

import pytest

from muomni.config import OptimConfig
from muomni.train.schedule import learning_rate

COSINE = OptimConfig(lr=1.0, min_lr_ratio=0.1, warmup_steps=4)
WSD = OptimConfig(lr=1.0, min_lr_ratio=0.1, warmup_steps=4, schedule="wsd", decay_share=0.25)


def _rates(config: OptimConfig, steps: int) -> list[float]:
    return [learning_rate(config, step=s, steps=steps) for s in range(steps)]


@pytest.mark.parametrize("config", [COSINE, WSD], ids=["cosine", "wsd"])
def test_warm_up_is_linear_and_the_last_step_has_the_minimum(config: OptimConfig) -> None:
    rates = _rates(config, 24)
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == pytest.approx(0.1, abs=1e-15)
    assert all(a >= b for a, b in zip(rates[3:], rates[4:], strict=False))


def test_cosine_is_half_way_down_in_the_middle() -> None:
    rates = _rates(COSINE, 25)
    assert rates[14] == pytest.approx(0.55) and rates[4] == 1.0
    assert rates[9] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)


def test_wsd_stays_at_the_peak_until_its_decay() -> None:
    """24 steps, the last quarter decays: 6 steps, 1 - sqrt(k / 6)."""
    rates = _rates(WSD, 24)
    assert rates[3:18] == [1.0] * 15
    assert rates[18:] == pytest.approx([0.1 + 0.9 * (1 - math.sqrt(k / 6)) for k in range(1, 7)])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize(
    ("steps", "warmup_steps", "decay_share"),
    [(1, 0, 0.2), (1, 1, 0.2), (2, 0, 0.9), (3, 2, 0.9), (5, 5, 0.5), (5, 9, 0.5), (7, 0, 0.0), (7, 6, 0.99)],
)
def test_edges_stay_between_zero_and_the_peak(
    schedule: str, steps: int, warmup_steps: int, decay_share: float
) -> None:
    config = OptimConfig(
        lr=1.0, min_lr_ratio=0.1, warmup_steps=warmup_steps, decay_share=decay_share,
        schedule=schedule,  # type: ignore[arg-type]
    )  # fmt: skip
    rates = _rates(config, steps)
    assert all(0.0 < rate <= 1.0 for rate in rates)
    expected = [(s + 1) / warmup_steps for s in range(min(steps, warmup_steps))]
    assert rates[: len(expected)] == pytest.approx(expected)


def test_wsd_without_a_decay_never_decays() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0, schedule="wsd", decay_share=0.0)
    assert _rates(config, 9) == [1.0] * 9


def test_wsd_with_a_long_warm_up_decays_in_what_is_left() -> None:
    config = OptimConfig(lr=1.0, min_lr_ratio=0.0, warmup_steps=8, schedule="wsd", decay_share=0.5)
    assert _rates(config, 10)[8:] == pytest.approx([1 - math.sqrt(0.5), 0.0])
