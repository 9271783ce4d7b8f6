"""Written answers to typed questions, most of them about pictures: exact match and F1, also with another picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from muomni.data.examples import Example, swapped
from muomni.data.items import PictureItem
from muomni.data.splits import normalised
from muomni.data.tasks import CHOOSING
from muomni.evaluate.asked import Answered, Asked
from muomni.evaluate.family import SHOWN, HeldOut, Measured, spread
from muomni.evaluate.figure import Figure, ratio
from muomni.evaluate.retrieval import MAX_KNOWN, NEAREST, nearest_groups
from muomni.metrics.answers import best_answer, confusions, token_f1

EXACT = ("name", "group", *CHOOSING, "definition")
"""Tasks whose answers are compared as a whole."""
OVERLAP = ("name", "caption", "definition")
"""Tasks whose answers are compared word by word."""
SWAPPED = ("name", "group", "yes or no", "caption")
"""Tasks with a picture that are asked again with another one."""
_CONFUSED = 10


def evaluate_vqa(held: HeldOut) -> Measured:
    """Greedy answers to typed questions. The baseline is the best constant answer, chosen on the same items."""
    out, asked = Measured(), Asked(held)
    tasks = tuple(dict.fromkeys((*EXACT, *OVERLAP)))
    chosen = asked.chosen(tasks)
    for task in tasks:
        names = [f"vqa.exact.{slug(task)}"] * (task in EXACT) + [f"vqa.f1.{slug(task)}"] * (task in OVERLAP)
        if task not in chosen:
            out.skip(f"the data has no example of task {task} in split {held.split} that fits", *names)
            continue
        answered = asked.answer(chosen[task])
        if task in EXACT:
            out.figures.append(exact(held, names[0], f"answers: exact, task {task}", answered))
        if task in OVERLAP:
            out.figures.append(
                _f1(held, asked, names[-1], f"answers: F1 of the words, task {task}", answered)
            )
        if task in SWAPPED:
            out.figures.append(_swapped(held, asked, answered))
        if task == "group":
            out.figures += _nearest(held, asked, answered)
            pairs = confusions([a.example.answer for a in answered], [a.given for a in answered])
            rows = [[e, g, str(n)] for e, g, n in pairs[:_CONFUSED]]
            out.tables["Groups taken for others, by the Thinker"] = [["group", "answered", "times"], *rows]
        out.cases[f"Wrong answers, task {task}"] = asked.wrong(answered, SHOWN)
    return out


def slug(task: str) -> str:
    """A task's name as a part of a figure's."""
    return task.replace(" ", "_")


def exact(held: HeldOut, name: str, what: str, answered: Sequence[Answered]) -> Figure:
    """Share of exact answers, against the most common of the expected ones."""
    expected = [normalised(a.example.answer) for a in answered]
    common = max(expected.count(answer) for answer in expected)
    return ratio(
        name, what, sums=np.array([a.exact for a in answered], float), baseline=common / len(expected),
        baseline_name="most common answer", better="higher", unit="share", seed=held.seed,
    )  # fmt: skip


def _references(asked: Asked, example: Example) -> list[str]:
    """What counts as right: every caption of the picture, or the answer."""
    picture = asked.pictures[example.pictures[0]] if example.pictures else None
    if example.task == "caption" and isinstance(picture, PictureItem):
        return [normalised(caption) for caption in picture.captions]
    return [normalised(example.answer)]


def _f1(held: HeldOut, asked: Asked, name: str, what: str, answered: Sequence[Answered]) -> Figure:
    references = [_references(asked, a.example) for a in answered]

    def mean(answer: str) -> float:
        return float(np.mean([token_f1(own, answer) for own in references]))

    _, baseline = best_answer([answer for own in references for answer in own], mean)
    return ratio(
        name, what,
        sums=[token_f1(own, normalised(a.given)) for own, a in zip(references, answered, strict=True)],
        baseline=baseline, baseline_name="best constant answer", better="higher", unit="F1", seed=held.seed,
    )  # fmt: skip


def _swapped(held: HeldOut, asked: Asked, answered: Sequence[Answered]) -> Figure:
    """The same questions with another's picture; captions by F1, all else by exact answers."""
    own = [a.example for a in answered]
    others = [a.given for a in asked.answer(swapped(own))]
    task = own[0].task

    def score(given: Sequence[str]) -> list[float]:
        if task in EXACT:
            return [float(normalised(g) == normalised(e.answer)) for g, e in zip(given, own, strict=True)]
        return [token_f1(_references(asked, e), normalised(g)) for g, e in zip(given, own, strict=True)]

    how, unit = ("exact", "share") if task in EXACT else ("F1", "F1")
    return ratio(
        f"vqa.right_picture.{slug(task)}", f"answers: {how} with the right picture, task {task}",
        sums=score([a.given for a in answered]), baseline=float(np.mean(score(others))),
        baseline_name="with another's picture", better="higher", unit=unit, seed=held.seed,
    )  # fmt: skip


def _nearest(held: HeldOut, asked: Asked, answered: Sequence[Answered]) -> list[Figure]:
    """The group of a picture against that of the nearest training picture, on the same items."""
    known = spread([item for item in held.source.pictures("train") if item.group], MAX_KNOWN)
    shown = [asked.pictures[a.example.pictures[0]] for a in answered]
    items = [item for item in shown if isinstance(item, PictureItem)]
    if not known:
        return []
    floor = nearest_groups(items, known, held.source)
    right = [group == item.group for group, item in zip(floor, items, strict=True)]
    return [
        ratio(
            "vqa.exact.group.nearest", "answers: exact, task group, against the nearest picture",
            sums=np.array([a.exact for a in answered], float), baseline=float(np.mean(right)),
            baseline_name=NEAREST, better="higher", unit="share", seed=held.seed,
        )
    ]  # fmt: skip
