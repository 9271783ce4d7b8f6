"""A wording stands in one split, in text and in speech."""

from itertools import combinations

import pytest

from muomni.data import embedded
from muomni.data.items import SPLITS
from muomni.data.splits import normalised
from muomni.data.wordings import WORDINGS, with_article, wordings


def test_no_wording_stands_in_two_splits_and_every_split_has_some() -> None:
    by_split = {
        split: {normalised(w) for task in WORDINGS for w in wordings(task, split)} for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not by_split[one] & by_split[other]
    for task, both in WORDINGS.items():
        assert all(wordings(task, split) for split in SPLITS), task
        assert len({normalised(w) for w, _ in both}) == len(both), task


@pytest.mark.parametrize("kind", ["name", "group"])
def test_what_is_typed_in_a_split_is_what_the_embedded_voices_ask_in_it(kind: str) -> None:
    for split in SPLITS:
        spoken = {q.text for q in embedded.Embedded().questions(split) if q.kind == kind}
        assert spoken == set(wordings(kind, split))


def test_wordings_about_a_thing_name_it_once() -> None:
    named = {task: {w.count("{thing}") for w, _ in both} for task, both in WORDINGS.items()}
    assert {task for task, times in named.items() if times == {1}} == {"count kind", "yes or no"}
    assert all(times in ({0}, {1}) for times in named.values())


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        ("dog", "a dog"), ("apple", "an apple"), ("bus", "a bus"), ("glass", "a glass"), ("glasses", "glasses"),
        ("flag: Peru", "flag: Peru"), ("Eiffel Tower", "Eiffel Tower"), ("2 cats", "2 cats"),
        ("animal or plant", "an animal or plant"), ("", ""),
    ],
)  # fmt: skip
def test_a_thing_has_its_article(thing: str, expected: str) -> None:
    assert with_article(thing) == expected
