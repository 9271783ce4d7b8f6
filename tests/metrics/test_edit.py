"""Edit distance against the textbook recursion; error rates against hand-counted cases."""

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.metrics.edit import best_constant_error_rate, edit_distance, error_rate


def _recursion(a: str, b: str) -> int:
    @lru_cache(None)
    def d(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(d(i - 1, j) + 1, d(i, j - 1) + 1, d(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return d(len(a), len(b))


@settings(max_examples=100, deadline=None)
@given(st.text("abc ", max_size=9), st.text("abcd", max_size=9))
def test_edit_distance_equals_recursion(a: str, b: str) -> None:
    assert edit_distance(a, b) == _recursion(a, b)


def test_error_rate_sums_errors_over_units() -> None:
    rate = error_rate(["kitten", "a b"], ["sitting", "a b"])
    assert (rate.errors, rate.n) == (3, 9)
    assert error_rate(["one two three"], ["one too"], "word").value == pytest.approx(2 / 3)


def test_error_rate_rejects_uneven_lists() -> None:
    with pytest.raises(ValueError, match="expected 2"):
        error_rate(["a", "b"], ["a"])


def test_best_constant_finds_a_shared_text_and_never_loses_to_silence() -> None:
    assert best_constant_error_rate(["hello"] * 3).value == 0.0
    assert best_constant_error_rate(["abc", "def", "xyz", "e"]).value <= 1.0
    assert best_constant_error_rate(["yes no", "yes", "yes yes"], "word").value == pytest.approx(2 / 5)
