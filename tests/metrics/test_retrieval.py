"""Recall at 1 against drawing the distractors."""

import numpy as np
import pytest

from muomni.metrics.retrieval import recall_at_1


def test_recall_equals_the_mean_over_drawn_groups() -> None:
    generator = np.random.default_rng(0)
    similarity = generator.normal(size=(30, 30)) + 1.5 * np.eye(30)
    drawn = []
    for _ in range(3_000):
        group = generator.permutation(30)[:8]
        part = similarity[np.ix_(group, group)]
        drawn.append((part.argmax(axis=1) == np.arange(8)).mean())
    assert recall_at_1(similarity, group=8).value == pytest.approx(np.mean(drawn), abs=0.01)


def test_perfect_is_one_and_ties_count_against() -> None:
    assert recall_at_1(np.eye(100)).value == 1.0
    assert recall_at_1(np.zeros((100, 100))).value == 0.0


def test_group_shrinks_to_the_items_there_are() -> None:
    recall = recall_at_1(np.eye(5))
    assert (recall.group, recall.chance) == (5, 0.2)
    with pytest.raises(ValueError, match="non-finite"):
        recall_at_1(np.full((3, 3), np.nan))
