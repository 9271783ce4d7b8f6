"""Answers: held-out loss against the text-only model, and what the right picture or recording saves."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from muomni.data.audio import audio_frames
from muomni.data.embedded import PICTURE_SIDE
from muomni.data.image import to_float
from muomni.data.items import Source, Split
from muomni.data.tasks import NAMING, TASKS, Example, clips, documents, examples
from muomni.evaluate.figure import Figure, ratio
from muomni.evaluate.score import Scores, score
from muomni.evaluate.speech import spread
from muomni.infer.session import Session
from muomni.models.thinker import Thinker

PER_TASK = 48
"""Held-out examples a task is measured on, spread over the split."""


class Answers:
    """Scores examples of one split with one session; every picture and clip is encoded once."""

    def __init__(self, session: Session, source: Source, split: Split) -> None:
        """Nothing is read yet."""
        self.session = session
        self.source = source
        self.split: Split = split
        self._clips = clips(split, source)
        self._pictures = source.pictures(split)
        self._seen: dict[int, Tensor] = {}
        self._heard: dict[int, Tensor] = {}

    def chosen(self) -> dict[str, list[Example]]:
        """At most PER_TASK examples of each task that has any."""
        found: dict[str, list[Example]] = {task: [] for task in TASKS}
        longest = self.session.config.max_audio_samples
        for example in examples(self.split, max_audio_samples=longest, source=self.source):
            found[example.task].append(example)
        return {task: [all_[i] for i in spread(len(all_), PER_TASK)] for task, all_ in found.items() if all_}

    def score(self, asked: list[Example], *, thinker: Thinker | None = None) -> Scores:
        """Score the answers; another thinker gets the questions without their media."""
        config = self.session.config
        rendered = documents(
            asked,
            self.session.tokenizer,
            clip_tokens=[config.audio_tokens(clip.n_samples) for clip in self._clips],
            n_image_tokens=config.vision.n_image_tokens,
            max_seq_len=config.max_seq_len,
            media=thinker is None,
        )
        if thinker is not None:
            return score(thinker, rendered)
        embeds = [
            self.session.engine.embed(
                document,
                None if example.picture is None else self._see(example.picture),
                None if example.clip is None else self._hear(example.clip),
            )
            for document, example in zip(rendered, asked, strict=True)
        ]
        return score(self.session.engine.model.thinker, rendered, embeds)

    def _see(self, index: int) -> Tensor:
        if index not in self._seen:
            size = self.session.config.vision.image_size
            pixels = self.source.picture(self._pictures[index], side=max(PICTURE_SIDE, size))
            self._seen[index] = self.session.engine.see(to_float(torch.from_numpy(pixels)[None], size))
        return self._seen[index]

    def _hear(self, index: int) -> Tensor:
        if index not in self._heard:
            config = self.session.config
            waveform = self.source.waveform(self._clips[index])
            self._heard[index] = self.session.engine.hear(
                audio_frames(waveform, config.mel, factor=config.audio.factor)
            )
        return self._heard[index]


def swapped(asked: list[Example]) -> list[Example]:
    """The same questions and answers, each with what the answer depends on taken from another example.

    That is the picture, or else the recording; a spoken question stays. The other example is the nearest one,
    cyclically, whose answer differs.
    """
    result = []
    for i, example in enumerate(asked):
        others = (asked[(i + k) % len(asked)] for k in range(1, len(asked)))
        other = next((o for o in others if o.answer != example.answer), example)
        changed = {"picture": other.picture} if example.picture is not None else {"clip": other.clip}
        result.append(dataclasses.replace(example, **changed))
    return result


def evaluate_media_use(
    session: Session, text_only: Thinker, *, source: Source, split: Split, seed: int
) -> list[Figure]:
    """Answer loss by task, what the right media save, and exact answers.

    text_only: the text stage's Thinker, which gets the same questions and answers without media.
    """
    answers = Answers(session, source, split)
    asked = answers.chosen()
    scores = {task: answers.score(found) for task, found in asked.items()}
    figures = []
    blind = {task: answers.score(found, thinker=text_only) for task, found in asked.items()}
    for task in asked:
        figures.append(
            ratio(
                f"answer.loss.{task.replace(' ', '_')}", f"answers: loss, task {task}",
                sums=scores[task].nats, units=scores[task].n_targets,
                baseline=blind[task].nats.sum() / blind[task].n_targets.sum(),
                baseline_name="text-only model, no media", unit="nats/token", seed=seed,
            )
        )  # fmt: skip
    for what, tasks in (("picture", NAMING), ("recording", ("transcribe",))):
        right = [scores[task] for task in tasks if task in scores]
        if not right:
            continue
        wrong = [answers.score(swapped(asked[task])) for task in tasks if task in asked]
        figures.append(
            ratio(
                f"answer.{what}_used", f"answers: loss saved by the right {what}, against another's",
                sums=np.concatenate([w.nats - r.nats for w, r in zip(wrong, right, strict=True)]),
                units=np.concatenate([r.n_targets for r in right]), baseline=0.0,
                baseline_name=f"{what} ignored", better="higher", unit="nats/token", seed=seed,
            )
        )  # fmt: skip
    common = Counter(item.group for item in source.pictures("train")).most_common(1)[0][0]
    for task, how in (("group", "typed"), ("group spoken", "spoken")):
        if task in asked:
            figures.append(
                ratio(
                    f"answer.group_accuracy.{how}",
                    f"answers: group of an unseen picture exact, {how} question",
                    sums=scores[task].exact.astype(float),
                    baseline=float(np.mean([e.answer == common for e in asked[task]])),
                    baseline_name="most common group", better="higher", unit="share", seed=seed,
                )
            )  # fmt: skip
    return figures
