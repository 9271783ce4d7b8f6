"""Spoken questions end to end: sound in, written answer out, and what an independent recogniser hears of it said."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from muomni.data.examples import Example
from muomni.data.items import QuestionItem
from muomni.data.splits import normalised
from muomni.evaluate.asked import Answered, Asked
from muomni.evaluate.family import SHOWN, Case, HeldOut, Measured, spread
from muomni.evaluate.figure import ratio
from muomni.evaluate.scored_text import scored_form
from muomni.evaluate.vqa import exact, slug

TASKS = ("name spoken", "group spoken", "definition spoken")
MAX_HEARD = 16
"""Answers that are said and heard, at most."""


def evaluate_spoken(held: HeldOut) -> Measured:
    """Exact answers by task and in all; against the same questions typed, and against another kind of question."""
    out, asked = Measured(), Asked(held)
    chosen = asked.chosen(TASKS)
    every: list[Answered] = []
    for task in TASKS:
        name = f"spoken.exact.{slug(task)}"
        if task not in chosen:
            out.skip(f"the data has no example of task {task} in split {held.split} that fits", name)
            continue
        answered = asked.answer(chosen[task])
        every += answered
        out.figures.append(exact(held, name, f"spoken questions: exact, task {task}", answered))
        out.cases[f"Wrong answers, task {task}"] = asked.wrong(answered, SHOWN)
    if not every:
        out.skip("the data has no spoken question", "spoken.exact", "spoken.typed", "spoken.heard")
        return out
    out.figures.append(exact(held, "spoken.exact", "spoken questions: exact, all tasks", every))
    typed = asked.answer([_typed(asked, a.example) for a in every])
    _against(held, out, "typed", "exact, and typed", every, typed, "the same questions typed")
    about = [a for a in every if a.example.pictures]
    others = [_other_kind(asked, a.example) for a in about]
    pairs = [(a, other) for a, other in zip(about, others, strict=True) if other is not None]
    if pairs:
        given = asked.answer([other for _, other in pairs])
        own = [a for a, _ in pairs]
        _against(
            held, out, "right_question", "exact, right recording", own, given, "another kind of question"
        )
    else:
        out.skip("the data has no spoken question of another kind", "spoken.right_question")
    _said(held, out, asked, [a.example for a in every])
    return out


def _against(
    held: HeldOut,
    out: Measured,
    name: str,
    what: str,
    own: Sequence[Answered],
    other: Sequence[Answered],
    baseline_name: str,
) -> None:
    out.figures.append(
        ratio(
            f"spoken.{name}", f"spoken questions: {what}", sums=np.array([a.exact for a in own], float),
            baseline=float(np.mean([a.exact for a in other])), baseline_name=baseline_name,
            better="higher", unit="share", seed=held.seed,
        )
    )  # fmt: skip


def _typed(asked: Asked, example: Example) -> Example:
    """The words of the question in place of its sound."""
    words = " ".join(
        clip.text for clip in (asked.clips[i] for i in example.clips) if isinstance(clip, QuestionItem)
    )
    return dataclasses.replace(example, question=words, clips=())


def _other_kind(asked: Asked, example: Example) -> Example | None:
    """The same picture and expected answer, with a question that asks for something else."""
    longest = asked.session.config.max_audio_samples
    mine = asked.clips[example.clips[0]]
    other = next(
        (
            i
            for i, clip in enumerate(asked.clips)
            if isinstance(clip, QuestionItem) and isinstance(mine, QuestionItem)
            and clip.kind != mine.kind and not clip.answer and clip.n_samples <= longest
        ),
        None,
    )  # fmt: skip
    return None if other is None else dataclasses.replace(example, clips=(other,))


def _said(held: HeldOut, out: Measured, asked: Asked, chosen: Sequence[Example]) -> None:
    """The answers as speech: a few to be heard by people, more by the recogniser where there is one."""
    recognise = held.panel.recognise
    some = spread(chosen, min(held.n, SHOWN // 2 if recognise is None else MAX_HEARD))
    cases: list[Case] = []
    heard: list[float] = []
    for example in some:
        question = asked.question(example)
        reply = held.session.another().chat(
            question.text or None, image=question.pictures, audio=question.clips, seed=held.seed
        )
        given = reply.text
        if recognise is not None:
            understood = recognise(reply.audio.waveform) if len(reply.audio) else ""
            heard.append(float(scored_form(understood) == scored_form(example.answer)))
            given = f"{reply.text} (heard: {understood})"
        case = asked.case(Answered(example=example, given=given), error=0.0)
        cases.append(dataclasses.replace(case, said=reply.audio.waveform))
    out.cases["Answers as speech"] = cases[:SHOWN]
    if recognise is None:
        out.skip("no recogniser was asked for: --judges whisper", "spoken.heard")
        return
    expected = [normalised(example.answer) for example in some]
    out.figures.append(
        ratio(
            "spoken.heard", "spoken questions: the spoken answer is understood as the expected one", sums=heard,
            baseline=max(map(expected.count, expected)) / len(expected), baseline_name="most common answer",
            better="higher", unit="share", seed=held.seed,
        )
    )  # fmt: skip
