"""Draws of tasks against their closed forms."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data.task_mix import mix

COUNTS = {"a": 100, "b": 400, "c": 900, "d": 0}
ALIKE = dict.fromkeys(COUNTS, 1.0)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, {"a": 60, "b": 240, "c": 540, "d": 0}),
        (2.0, {"a": 140, "b": 280, "c": 420, "d": 0}),
        (math.inf, {"a": 280, "b": 280, "c": 280, "d": 0}),
    ],
)
def test_a_temperature_takes_the_root_of_the_counts(temperature: float, expected: dict[str, int]) -> None:
    assert mix(COUNTS, total=840, temperature=temperature, weights=ALIKE) == expected


def test_a_weight_multiplies_and_zero_leaves_a_task_out() -> None:
    weights = {"a": 3.0, "b": 1.5, "c": 0.0, "d": 9.0}
    assert mix(COUNTS, total=100, temperature=2.0, weights=weights) == {"a": 50, "b": 50, "c": 0, "d": 0}


def test_nothing_to_ask_about_gives_no_draws() -> None:
    assert mix({"a": 0}, total=10, temperature=1.0, weights={"a": 1.0}) == {"a": 0}


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 10**6), min_size=1, max_size=12),
    total=st.integers(0, 10**5),
    temperature=st.floats(1.0, 10.0),
)
def test_draws_add_up_and_are_within_one_of_their_share(
    counts: list[int], total: int, temperature: float
) -> None:
    named = {str(i): n for i, n in enumerate(counts)}
    draws = mix(named, total=total, temperature=temperature, weights=dict.fromkeys(named, 1.0))
    assert sum(draws.values()) == total
    roots = [n ** (1 / temperature) for n in counts]
    for i, root in enumerate(roots):
        assert abs(draws[str(i)] - total * root / sum(roots)) < 1 + 1e-6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"temperature": 0.5}, "temperature: expected at least 1, got 0.5"),
        ({"temperature": math.nan}, "temperature: expected at least 1, got nan"),
        ({"weights": {"a": 1.0}}, "got none for b, c, d"),
        ({"weights": ALIKE | {"e": 1.0}}, "'e' is no task; there are a, b, c, d"),
        ({"weights": ALIKE | {"b": -1.0}}, "expected 0 or more, got -1.0 for b"),
    ],
)
def test_what_cannot_be_mixed_is_said(changes: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        mix(COUNTS, **({"total": 10, "temperature": 1.0, "weights": ALIKE} | changes))
