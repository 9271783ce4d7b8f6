"""Held-out figures of the omni stage: are the answers right, and are the media used?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from muomni.data.items import Split
from muomni.data.tasks import NAMING, TASKS, Example
from muomni.models.thinker import Thinker
from muomni.train.stage import Figure, Parts, load_parent

if TYPE_CHECKING:
    from muomni.train.stages.omni import OmniStage

PER_TASK = 64
"""Held-out examples a task is measured on, at most."""


def swapped(chosen: list[Example]) -> list[Example]:
    """The same questions and answers, each with the picture, or else the recording, of another example.

    A spoken question keeps its clip: only what the answer depends on changes. The other example is the
    nearest one, cyclically, whose answer differs.
    """
    result = []
    for i, example in enumerate(chosen):
        others = (chosen[(i + k) % len(chosen)] for k in range(1, len(chosen)))
        other = next((o for o in others if o.answer != example.answer), example)
        changes = {"picture": other.picture} if example.picture is not None else {"clip": other.clip}
        result.append(dataclasses.replace(example, **changes))
    return result


def figures(stage: OmniStage, model: nn.Module, split: Split) -> list[Figure]:
    """Answer loss per token by task against the text-only model; right against swapped media; group accuracy."""
    by_task: dict[str, list[Example]] = {task: [] for task in TASKS}
    for example in stage.examples(split):
        by_task[example.task].append(example)
    # Spread over the split, not its first items: pictures are ordered by kind.
    chosen = {task: _spread(found, PER_TASK) for task, found in by_task.items() if found}
    text_only = Parts(thinker=Thinker(stage.config.thinker)).to(stage.device(model)).eval()
    load_parent(text_only, stage.root, parent="text", parts=("thinker",), child=stage.name, run=stage.run)
    scores = {task: stage.score(model, split, found) for task, found in chosen.items()}
    blind = {task: stage.score(text_only, split, found, media=False) for task, found in chosen.items()}
    rows = [
        Figure(
            name=f"answer loss, {task}", value=_mean(scores[task]), baseline=_mean(blind[task]),
            baseline_name="text-only stage, no media", n=len(found),
        )
        for task, found in chosen.items()
    ]  # fmt: skip
    rows.append(
        Figure(
            name="answer loss, all tasks", value=_mean(_joined(list(scores.values()))),
            baseline=_mean(_joined(list(blind.values()))), baseline_name="text-only stage, no media",
            n=sum(map(len, chosen.values())),
        )
    )  # fmt: skip
    for what, tasks in (("picture", NAMING), ("recording", ("transcribe",))):
        right = _joined([scores[t] for t in tasks if t in scores])
        wrong = _joined([stage.score(model, split, swapped(chosen[t])) for t in tasks if t in chosen])
        rows.append(
            Figure(
                name=f"answer loss, right {what}", value=_mean(right), baseline=_mean(wrong),
                baseline_name=f"another item's {what}", n=len(right[0]),
            )
        )  # fmt: skip
    common = Counter(item.group for item in stage.data.pictures("train")).most_common(1)[0][0]
    for task, name in (("group", "typed"), ("group spoken", "spoken")):
        majority = sum(e.answer == common for e in chosen[task]) / len(chosen[task])
        rows.append(
            Figure(
                name=f"group accuracy, {name} question", value=float(scores[task][2].mean()), baseline=majority,
                baseline_name="most common group", better="higher", n=len(chosen[task]),
            )
        )  # fmt: skip
    naming = _joined([scores[t] for t in ("name", "name spoken")])
    rows.append(
        Figure(
            name="exact label, unseen concepts", value=float(naming[2].mean()), baseline=0.0,
            baseline_name="most common label", better="higher", n=len(naming[0]),
        )
    )  # fmt: skip
    return rows


Scores = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _mean(scores: Scores) -> float:
    return float(scores[0].sum() / scores[1].sum())


def _joined(parts: list[Scores]) -> Scores:
    nats, tokens, exact = (torch.cat(column) for column in zip(*parts, strict=True))
    return nats, tokens, exact


def _spread(found: list[Example], n: int) -> list[Example]:
    return [found[i * len(found) // n] for i in range(n)] if len(found) > n else found
