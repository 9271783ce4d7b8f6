"""F1 of answers and confusions against hand counts; the nearest neighbour against all distances."""

import numpy as np
import pytest

from muomni.metrics.answers import best_answer, confusions, token_f1
from muomni.metrics.nearest import nearest


@pytest.mark.parametrize(
    ("references", "answer", "f1"),
    [
        (["a red bus"], "a red bus", 1.0),
        # Two of two words right, two of three found: 2 * 1 * (2/3) / (1 + 2/3).
        (["a red bus"], "red bus", 0.8),
        # A word counts as often as it comes: one of the two is right.
        (["bus"], "bus bus", 2 / 3),
        (["a dog", "the old cat"], "old cat", 0.8),
        (["bus"], "", 0.0),
        ([""], "", 1.0),
    ],
)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(
    references: list[str], answer: str, f1: float
) -> None:
    assert token_f1(references, answer) == pytest.approx(f1)


def test_best_answer_is_the_first_of_the_highest() -> None:
    assert best_answer(["ab", "c", "de"], len) == ("ab", 2)
    assert best_answer([], len) == ("", 0.0)


def test_confusions_are_counted_and_right_answers_are_none() -> None:
    expected = ["cat", "cat", "dog", "dog", "cow"]
    given = ["dog", "dog", "dog", "cat", "ant"]
    assert confusions(expected, given) == [("cat", "dog", 2), ("cow", "ant", 1), ("dog", "cat", 1)]


def test_nearest_equals_the_smallest_of_all_distances() -> None:
    draw = np.random.default_rng(0)
    queries, known = draw.normal(size=(20, 5)), draw.normal(size=(30, 5))
    distances = ((queries[:, None] - known[None]) ** 2).sum(axis=2)
    assert nearest(queries, known).tolist() == distances.argmin(axis=1).tolist()
    with pytest.raises(ValueError, match="m > 0"):
        nearest(queries, known[:0])
