"""Reading: character error rate of written words in pictures, against the best constant answer."""

from __future__ import annotations

from muomni.data.examples import swapped
from muomni.data.splits import normalised
from muomni.evaluate.asked import Asked
from muomni.evaluate.family import SHOWN, HeldOut, Measured
from muomni.evaluate.figure import ratio
from muomni.metrics.edit import best_constant_error_rate, error_rate


def evaluate_ocr(held: HeldOut) -> Measured:
    """Lines read by the Thinker, greedily; case and punctuation are not looked at."""
    out, asked = Measured(), Asked(held)
    names = ("ocr.char_error_rate", "ocr.right_picture")
    chosen = asked.chosen(("read",)).get("read")
    if not chosen:
        out.skip(f"the data has no picture of written words in split {held.split}", *names)
        return out
    answered = asked.answer(chosen)
    references = [normalised(a.example.answer) for a in answered]
    rates = [error_rate([r], [normalised(a.given)]) for r, a in zip(references, answered, strict=True)]
    other = [normalised(a.given) for a in asked.answer(swapped(chosen))]
    floors = (
        (best_constant_error_rate(references).value, "best constant answer", "character error rate"),
        (
            error_rate(references, other).value,
            "with another's picture",
            "character error rate, right picture",
        ),
    )
    for name, (baseline, baseline_name, what) in zip(names, floors, strict=True):
        out.figures.append(
            ratio(
                name, f"reading: {what}", sums=[r.errors for r in rates], units=[r.n for r in rates],
                baseline=baseline, baseline_name=baseline_name, unit="errors/character", seed=held.seed,
            )
        )  # fmt: skip
    out.cases["Lines that are read worst"] = [
        asked.case(a, error=rate.value)
        for rate, a in sorted(zip(rates, answered, strict=True), key=lambda pair: -pair[0].value)[:SHOWN]
    ]
    return out
