"""Speech as an independent recogniser hears it, on every path; `muomni eval speech` has all judges and the costs."""

from __future__ import annotations

from muomni.errors import UserError
from muomni.evaluate.family import SHOWN, Case, HeldOut, Measured
from muomni.evaluate.figure import Figure
from muomni.evaluate.listening import METRICS, listen
from muomni.evaluate.speech_paths import SAY, WHAT

MAX_HEARD = 32
"""Sentences, at most: the recogniser is larger than what it judges."""


def evaluate_heard(held: HeldOut) -> Measured:
    """Error rates of the recogniser on recordings and on every path that ends in sound."""
    out = Measured()
    names = ("speech.say.cer", "speech.codec.cer")
    if held.panel.recognise is None:
        out.skip("no recogniser was asked for: --judges whisper, or `muomni eval speech`", *names)
        return out
    try:
        found = listen(
            held.session, held.source, held.panel, split=held.split, n=min(held.n, MAX_HEARD),
            seeds=(held.seed,), bootstrap_seed=held.seed,
        )  # fmt: skip
    except UserError as error:
        out.skip(str(error).rstrip("."), *names)
        return out
    for judged in found.figures:
        if judged.metric in ("cer", "wer"):
            out.figures.append(
                Figure(
                    name=f"speech.{judged.path}.{judged.metric}",
                    what=f"speech: {METRICS[judged.metric][0]}, {WHAT[judged.path]}", value=judged.value,
                    baseline=1.0, baseline_name="silence", better="lower", n=judged.n, interval=judged.interval,
                    unit=judged.unit, seed=held.seed,
                )
            )  # fmt: skip
    out.cases["What is heard of the Talker"] = [
        Case(item=item.id, expected=item.text, given=one.text or "", error=0.0, said=one.waveform)
        for item, own in list(zip(found.items, found.heard, strict=True))[:SHOWN]
        for one in own
        if one.path == SAY
    ]
    return out
