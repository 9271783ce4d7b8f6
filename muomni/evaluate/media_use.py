"""Answers: held-out loss against the text-only model, and what the right picture or recording saves."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from muomni.data.audio import audio_frames
from muomni.data.embedded import PICTURE_SIDE
from muomni.data.examples import Example, Places, clips, documents, fitting, pictures, swapped
from muomni.data.image import to_float
from muomni.data.items import Source, Split
from muomni.data.tasks import CHOOSING, NAMING, TASKS, examples
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
        """No file is read yet."""
        self.session = session
        self.source = source
        self.split: Split = split
        self._clips = clips(split, source)
        self._pictures = pictures(split, source)
        self._seen: dict[int, Tensor] = {}
        self._heard: dict[int, Tensor] = {}

    def chosen(self) -> dict[str, list[Example]]:
        """At most PER_TASK examples of each task that has any."""
        found: dict[str, list[Example]] = {task: [] for task in TASKS}
        longest = self.session.config.max_audio_samples
        every = examples(self.split, max_audio_samples=longest, source=self.source)
        for example in fitting(every, self.session.tokenizer, **self._places):
            found[example.task].append(example)
        return {task: [all_[i] for i in spread(len(all_), PER_TASK)] for task, all_ in found.items() if all_}

    def score(self, asked: list[Example], *, thinker: Thinker | None = None) -> Scores:
        """Score the answers; another thinker gets the questions without their media."""
        rendered = documents(asked, self.session.tokenizer, **self._places, media=thinker is None)
        if thinker is not None:
            return score(thinker, rendered)
        embeds = [
            self.session.engine.embed(
                document,
                torch.cat([self._see(i) for i in example.pictures]) if example.pictures else None,
                torch.cat([self._hear(i) for i in example.clips]) if example.clips else None,
            )
            for document, example in zip(rendered, asked, strict=True)
        ]
        return score(self.session.engine.model.thinker, rendered, embeds)

    @property
    def _places(self) -> Places:
        config = self.session.config
        return Places(
            clip_tokens=[config.audio_tokens(clip.n_samples) for clip in self._clips],
            n_image_tokens=config.vision.n_image_tokens,
            max_seq_len=config.max_seq_len,
        )

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
    groups = Counter(item.group for item in source.pictures("train") if item.group)
    common = groups.most_common(1)[0][0] if groups else ""
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
    for task in CHOOSING:
        if task in asked:
            answer = Counter(e.answer for e in asked[task]).most_common(1)[0][0]
            figures.append(
                ratio(
                    f"answer.right.{task.replace(' ', '_')}", f"answers: right ones, task {task}",
                    sums=scores[task].exact.astype(float),
                    baseline=float(np.mean([e.answer == answer for e in asked[task]])),
                    baseline_name="most common answer", better="higher", unit="share", seed=seed,
                )
            )  # fmt: skip
    return figures
