"""Tasks about several pictures: how many there are, how many show something, and which one is of another group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from muomni.data.examples import Example
from muomni.data.items import PictureItem
from muomni.data.task import Make, Material, Task, one
from muomni.data.wordings import with_article, wordings

MAX_PICTURES = 4
"""Most pictures of one question."""
NUMBERS = ("none", "one", "two", "three", "four")
ORDINALS = ("first", "second", "third", "fourth")
_Span = tuple[int, int]


class Shelf:
    """Pictures of one style sorted by group and label, so that each group, and each label in it, is one span.

    Groups of one style come from one source and exclude each other; those of different sources may not.
    """

    def __init__(self, chosen: Sequence[int], items: Sequence[PictureItem]) -> None:
        """chosen: indices of pictures that have a group."""
        self.order = sorted(chosen, key=lambda i: (items[i].group, items[i].label))
        self.groups = _spans([items[i].group for i in self.order])
        self.labels = _spans([(items[i].group, items[i].label) for i in self.order])

    def inside(self, span: _Span, n: int, draw: np.random.Generator) -> list[int]:
        """n different pictures of a span in random order."""
        return [self.order[span[0] + int(k)] for k in draw.choice(span[1] - span[0], n, replace=False)]

    def outside(self, span: _Span, n: int, draw: np.random.Generator) -> list[int]:
        """n different pictures that are not in a span, in random order."""
        left = len(self.order) - (span[1] - span[0])
        found = (int(k) for k in draw.choice(left, n, replace=False))
        return [self.order[k if k < span[0] else k + span[1] - span[0]] for k in found]


def _spans(keys: Sequence[object]) -> dict[object, _Span]:
    spans, start = {}, 0
    for key, run in groupby(keys):
        end = start + len(list(run))
        spans[key] = (start, end)
        start = end
    return spans


def several_tasks(material: Material) -> Iterator[Task]:
    """Counting, counting what shows a kind of thing, and the odd one out."""
    items, split = material.pictures, material.split
    yield Task(name="count", n=len(items), make=_count(wordings("count", split), len(items)))
    styles = Counter(item.style for item in items if item.group)
    shelves = {
        style: Shelf([i for i, item in enumerate(items) if item.group and item.style == style], items)
        for style in styles
    }
    # With fewer pictures of other groups no wrong ones could be shown.
    comparable = [
        i for i, item in enumerate(items)
        if item.group and _others(shelves[item.style], item.group) >= MAX_PICTURES
    ]  # fmt: skip
    asks = wordings("count kind", split)
    yield Task(name="count kind", n=len(comparable), make=_count_kind(asks, comparable, items, shelves))
    odd = [i for i in comparable if _companions(shelves[items[i].style], items[i].group)]
    asks = wordings("odd one out", split)
    yield Task(name="odd one out", n=len(odd), make=_odd_one_out(asks, odd, items, shelves))


def _others(shelf: Shelf, group: str) -> int:
    start, end = shelf.groups[group]
    return len(shelf.order) - (end - start)


def _companions(shelf: Shelf, group: str) -> list[_Span]:
    """Groups but this one with at least two pictures: what the odd one can stand among."""
    return [span for key, span in shelf.groups.items() if key != group and span[1] - span[0] >= 2]


def _count(asks: Sequence[str], n_items: int) -> Make:
    def make(i: int, draw: np.random.Generator) -> Example:
        n = int(draw.integers(1, min(MAX_PICTURES, n_items) + 1))
        others = [int(k) for k in draw.choice(n_items - 1, n - 1, replace=False)] if n > 1 else []
        shown = (i, *(k if k < i else k + 1 for k in others))
        return Example(task="count", question=one(asks, draw), answer=NUMBERS[n], pictures=shown)

    return make


def _count_kind(
    asks: Sequence[str], chosen: Sequence[int], items: Sequence[PictureItem], shelves: dict[str, Shelf]
) -> Make:
    def make(i: int, draw: np.random.Generator) -> Example:
        item = items[chosen[i]]
        shelf = shelves[item.style]
        thing, span = item.label, shelf.labels[item.group, item.label]
        if span[1] - span[0] < 2:
            thing, span = item.group, shelf.groups[item.group]
        n = int(draw.integers(2, MAX_PICTURES + 1))
        right = int(draw.integers(min(n, span[1] - span[0]) + 1))
        # What shows another thing of the same group is no wrong picture to be sure of.
        shown = shelf.inside(span, right, draw) + shelf.outside(shelf.groups[item.group], n - right, draw)
        return Example(
            task="count kind", question=one(asks, draw).format(thing=with_article(thing)), answer=NUMBERS[right],
            pictures=tuple(shown[int(k)] for k in draw.permutation(n)),
        )  # fmt: skip

    return make


def _odd_one_out(
    asks: Sequence[str], chosen: Sequence[int], items: Sequence[PictureItem], shelves: dict[str, Shelf]
) -> Make:
    def make(i: int, draw: np.random.Generator) -> Example:
        odd = chosen[i]
        shelf = shelves[items[odd].style]
        span = one(_companions(shelf, items[odd].group), draw)
        n = int(draw.integers(3, min(MAX_PICTURES, span[1] - span[0] + 1) + 1))
        place = int(draw.integers(n))
        shown = shelf.inside(span, n - 1, draw)
        shown.insert(place, odd)
        return Example(
            task="odd one out", question=one(asks, draw), answer=ORDINALS[place], pictures=tuple(shown)
        )

    return make
