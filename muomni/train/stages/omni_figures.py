"""Held-out figures of the omni stage: are the answers right, and are the media used?"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from muomni.data.examples import Example, swapped
from muomni.data.items import Split
from muomni.data.tasks import CHOOSING, NAMING, TASKS
from muomni.models.thinker import Thinker
from muomni.train.stage import Figure, Parts, load_parent

if TYPE_CHECKING:
    from muomni.train.stages.omni import OmniStage

PER_TASK = 64
"""Held-out examples a task is measured on, at most."""


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
        measured = [task for task in tasks if task in chosen]
        if not measured:
            continue
        right = _joined([scores[t] for t in measured])
        wrong = _joined([stage.score(model, split, swapped(chosen[t])) for t in measured])
        rows.append(
            Figure(
                name=f"answer loss, right {what}", value=_mean(right), baseline=_mean(wrong),
                baseline_name=f"another item's {what}", n=len(right[0]),
            )
        )  # fmt: skip
    groups = Counter(item.group for item in stage.data.pictures("train") if item.group)
    common = groups.most_common(1)[0][0] if groups else ""
    for task, name in (("group", "typed"), ("group spoken", "spoken")):
        if task in chosen:
            rows.append(
                _exact(
                    f"group accuracy, {name} question", [scores[task]],
                    baseline=_share(chosen[task], common), baseline_name="most common group",
                )
            )  # fmt: skip
    for task in CHOOSING:
        if task in chosen:
            common = Counter(e.answer for e in chosen[task]).most_common(1)[0][0]
            rows.append(
                _exact(
                    f"right answers, {task}", [scores[task]],
                    baseline=_share(chosen[task], common), baseline_name="most common answer",
                )
            )  # fmt: skip
    naming = [scores[t] for t in ("name", "name spoken") if t in scores]
    if naming:
        rows.append(
            _exact("exact label, unseen concepts", naming, baseline=0.0, baseline_name="most common label")
        )
    return rows


Scores = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _exact(name: str, parts: list[Scores], *, baseline: float, baseline_name: str) -> Figure:
    """Share of answers of which every token is the likeliest one."""
    _, _, exact = _joined(parts)
    return Figure(
        name=name, value=float(exact.mean()), baseline=baseline, baseline_name=baseline_name, better="higher",
        n=len(exact),
    )  # fmt: skip


def _share(chosen: list[Example], answer: str) -> float:
    return sum(e.answer == answer for e in chosen) / len(chosen)


def _mean(scores: Scores) -> float:
    return float(scores[0].sum() / scores[1].sum())


def _joined(parts: list[Scores]) -> Scores:
    nats, tokens, exact = (torch.cat(column) for column in zip(*parts, strict=True))
    return nats, tokens, exact


def _spread(found: list[Example], n: int) -> list[Example]:
    return [found[i * len(found) // n] for i in range(n)] if len(found) > n else found
