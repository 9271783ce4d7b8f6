"""Tasks about one picture: its name, its group, a caption, yes or no, and what is written on it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from muomni.data.examples import Example
from muomni.data.items import PictureItem
from muomni.data.task import Make, Material, Task, one
from muomni.data.wordings import with_article, wordings

CANDIDATES = 32
"""Pictures without a partner yet that the next one is compared with."""
_EMPTY_WORDS = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "is", "of", "on", "or", "the", "to", "with")
)


def picture_tasks(material: Material) -> Iterator[Task]:
    """Naming and grouping, typed and spoken, captions, yes or no, reading; each of what the source has."""
    items, split = material.pictures, material.split
    for kind in ("name", "group"):
        # A source may have groups for some of its pictures only.
        answers = [(i, answer) for i, item in enumerate(items) if (answer := _answer(item, kind))]
        yield Task(name=kind, n=len(answers), make=_typed(kind, wordings(kind, split), answers))
        voices = material.asked(kind)
        yield Task(
            name=f"{kind} spoken", n=len(answers) if voices else 0, make=_spoken(kind, voices, answers)
        )
    captions = [(i, caption) for i, item in enumerate(items) for caption in item.captions]
    yield Task(name="caption", n=len(captions), make=_typed("caption", wordings("caption", split), captions))
    statements = list(_statements(items))
    yield Task(name="yes or no", n=len(statements), make=_yes_or_no(wordings("yes or no", split), statements))
    lines = [(len(items) + i, line.text) for i, line in enumerate(material.lines)]
    yield Task(name="read", n=len(lines), make=_typed("read", wordings("read", split), lines))


def _answer(item: PictureItem, kind: str) -> str:
    return item.label if kind == "name" else item.group


def _typed(task: str, asks: Sequence[str], answers: Sequence[tuple[int, str]]) -> Make:
    def make(i: int, draw: np.random.Generator) -> Example:
        picture, answer = answers[i]
        return Example(task=task, question=one(asks, draw), answer=answer, pictures=(picture,))

    return make


def _spoken(kind: str, voices: Sequence[int], answers: Sequence[tuple[int, str]]) -> Make:
    def make(i: int, draw: np.random.Generator) -> Example:
        picture, answer = answers[i]
        clip = one(voices, draw)
        return Example(task=f"{kind} spoken", question="", answer=answer, pictures=(picture,), clips=(clip,))

    return make


def _yes_or_no(asks: Sequence[str], statements: Sequence[tuple[int, str, bool]]) -> Make:
    def make(i: int, draw: np.random.Generator) -> Example:
        picture, thing, true = statements[i]
        question = one(asks, draw).format(thing=with_article(thing))
        return Example(
            task="yes or no", question=question, answer="yes" if true else "no", pictures=(picture,)
        )

    return make


def _statements(items: Sequence[PictureItem]) -> Iterator[tuple[int, str, bool]]:
    """(picture, thing, whether it shows that) in a random order, with every thing as often true as false.

    So neither the answers nor the things alone tell anything. Every second pair of pictures is asked about by kind,
    where what is known of neither speaks of the other's.
    """
    found = []
    for number, (i, j) in enumerate(_pairs(items)):
        by_kind = number % 2 and all(
            items[a].group and _words(items[a].group).isdisjoint(_known(items[b]))
            for a, b in ((i, j), (j, i))
        )
        things = {of: items[of].group if by_kind else items[of].label for of in (i, j)}
        found += [(picture, things[of], picture == of) for picture, of in ((i, i), (i, j), (j, j), (j, i))]
    # In order they would alternate: every second one taken would give one answer alone.
    for k in np.random.default_rng(zlib.crc32(b"statements")).permutation(len(found)).tolist():
        yield found[k]


def _pairs(items: Sequence[PictureItem]) -> Iterator[tuple[int, int]]:
    """Pictures of one style in pairs of which neither shows what the other does."""
    names = [_words(item.label) for item in items]
    known = [_known(item) for item in items]

    def apart(i: int, j: int) -> bool:
        if items[i].group and items[i].group == items[j].group:
            return False
        return names[i].isdisjoint(known[j]) and names[j].isdisjoint(known[i])

    waiting: dict[str, list[int]] = {}
    for i in np.random.default_rng(zlib.crc32(b"pairs")).permutation(len(items)).tolist():
        others = waiting.setdefault(items[i].style, [])
        partner = next((j for j in others[:CANDIDATES] if apart(i, j)), None)
        if partner is None:
            others.append(i)
        else:
            others.remove(partner)
            yield partner, i


def _known(item: PictureItem) -> frozenset[str]:
    return _words(item.label, *item.tags, *item.captions)


def _words(*texts: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", " ".join(texts).casefold())) - _EMPTY_WORDS
