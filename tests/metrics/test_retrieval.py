"""Recall at k against drawing the distractors."""

import numpy as np
import pytest

from muomni.metrics.retrieval import equal, recall


@pytest.mark.parametrize("k", [1, 3])
def test_recall_equals_the_mean_over_drawn_groups(k: int) -> None:
    generator = np.random.default_rng(0)
    similarity = generator.normal(size=(30, 30)) + 1.5 * np.eye(30)
    drawn = []
    for _ in range(3_000):
        group = generator.permutation(30)[:8]
        part = similarity[np.ix_(group, group)]
        first = np.argsort(-part, axis=1)[:, :k]
        drawn.append((first == np.arange(8)[:, None]).any(axis=1).mean())
    assert recall(similarity, k=k, group=8).value == pytest.approx(np.mean(drawn), abs=0.01)


def test_perfect_is_one_and_ties_count_against() -> None:
    assert recall(np.eye(100)).value == 1.0
    assert recall(np.zeros((100, 100))).value == 0.0


def test_group_shrinks_to_the_items_there_are() -> None:
    found = recall(np.eye(5), k=1)
    assert (found.group, found.chance) == (5, 0.2)
    assert recall(np.eye(5), k=9).chance == 1.0
    with pytest.raises(ValueError, match="non-finite"):
        recall(np.full((3, 3), np.nan))


@pytest.mark.parametrize("k", [1, 3])
def test_equal_captions_are_no_distractors(k: int) -> None:
    """Oracle: groups drawn from the keys that are not alike."""
    generator = np.random.default_rng(0)
    captions = [f"{i % 2}" if i < 14 else f"{i}" for i in range(20)]
    similarity = generator.normal(size=(20, 20)) + 1.5 * np.eye(20)
    drawn = []
    for i in range(20):
        others = np.array([j for j in range(20) if captions[j] != captions[i]])
        for _ in range(2_000):
            group = generator.permutation(others)[:5]
            drawn.append((similarity[i, group] >= similarity[i, i]).sum() < k)
    found = recall(similarity, k=k, group=6, alike=equal(captions))
    assert found.value == pytest.approx(np.mean(drawn), abs=0.01)
    perfect = np.array([[float(a == b) for b in captions] for a in captions])
    assert recall(perfect, alike=equal(captions)).value == 1.0 > recall(perfect).value
