"""Answers by likelihood: held-out loss against the text-only model, and what the right picture or recording saves."""

from __future__ import annotations

from collections import Counter

import numpy as np

from muomni.data.examples import swapped
from muomni.data.tasks import CHOOSING, NAMING, TASKS
from muomni.evaluate.asked import Asked
from muomni.evaluate.family import HeldOut, Measured
from muomni.evaluate.figure import ratio


def evaluate_media_use(held: HeldOut) -> Measured:
    """Answer loss by task, what the right media save, and exact answers.

    The text stage's Thinker gets the same questions and answers without media.
    """
    out, text_only = Measured(), held.text_thinker
    answers = Asked(held)
    asked = answers.chosen()
    scores = {task: answers.score(found) for task, found in asked.items()}
    for task in TASKS:
        name = f"answer.loss.{task.replace(' ', '_')}"
        if task not in asked:
            out.skip(f"the data has no example of task {task} in split {held.split} that fits", name)
        elif isinstance(text_only, str):
            out.skip(text_only, name)
        else:
            blind = answers.score(asked[task], thinker=text_only)
            out.figures.append(
                ratio(
                    name, f"answers: loss, task {task}", sums=scores[task].nats, units=scores[task].n_targets,
                    baseline=blind.nats.sum() / blind.n_targets.sum(),
                    baseline_name="text-only model, no media", unit="nats/token", seed=held.seed,
                )
            )  # fmt: skip
    for what, tasks in (("picture", NAMING), ("recording", ("transcribe",))):
        right = [scores[task] for task in tasks if task in scores]
        if not right:
            out.skip(f"the data has no example of {', '.join(tasks)}", f"answer.{what}_used")
            continue
        wrong = [answers.score(swapped(asked[task])) for task in tasks if task in asked]
        out.figures.append(
            ratio(
                f"answer.{what}_used", f"answers: loss saved by the right {what}, against another's",
                sums=np.concatenate([w.nats - r.nats for w, r in zip(wrong, right, strict=True)]),
                units=np.concatenate([r.n_targets for r in right]), baseline=0.0,
                baseline_name=f"{what} ignored", better="higher", unit="nats/token", seed=held.seed,
            )
        )  # fmt: skip
    groups = Counter(item.group for item in held.source.pictures("train") if item.group)
    common = groups.most_common(1)[0][0] if groups else ""
    for task, how in (("group", "typed"), ("group spoken", "spoken")):
        if task in asked:
            out.figures.append(
                ratio(
                    f"answer.group_accuracy.{how}",
                    f"answers: group of an unseen picture exact, {how} question",
                    sums=scores[task].exact.astype(float),
                    baseline=float(np.mean([e.answer == common for e in asked[task]])),
                    baseline_name="most common group", better="higher", unit="share", seed=held.seed,
                )
            )  # fmt: skip
    for task in CHOOSING:
        if task in asked:
            answer = Counter(e.answer for e in asked[task]).most_common(1)[0][0]
            out.figures.append(
                ratio(
                    f"answer.right.{task.replace(' ', '_')}", f"answers: right ones, task {task}",
                    sums=scores[task].exact.astype(float),
                    baseline=float(np.mean([e.answer == answer for e in asked[task]])),
                    baseline_name="most common answer", better="higher", unit="share", seed=held.seed,
                )
            )  # fmt: skip
    return out
