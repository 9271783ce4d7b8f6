"""What a held-out figure must reach: the margins of the demo, of its shortened form in CI, and of speedruns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Margin:
    """A bound on a figure, absolute or as a multiple of its trivial baseline."""

    bound: float
    """At most this for figures where lower is better, at least this otherwise."""
    of: Literal["value", "baseline"]
    """Whether bound is the value itself or a factor of the baseline."""

    def limit(self, baseline: float) -> float:
        """The bound as a value."""
        return self.bound if self.of == "value" else self.bound * baseline


def _at(bound: float) -> Margin:
    return Margin(bound=bound, of="value")


def _times(bound: float) -> Margin:
    return Margin(bound=bound, of="baseline")


DEMO: dict[str, Margin] = {
    "text.bits_per_byte.unigram": _times(0.9),
    "text.bits_per_byte.bigram": _times(0.95),
    "asr.char_error_rate": _at(0.45),
    "retrieval.picture_to_caption": _at(0.11),
    "codec.mel_error.8": _times(0.5),
    "codec.weakest_codebook": _times(0.998),
    "answer.loss.name": _at(4.5),
    "answer.loss.name_spoken": _at(4.5),
    "answer.loss.group": _at(0.6),
    "answer.loss.group_spoken": _at(0.6),
    "answer.loss.transcribe": _times(0.9),
    "asr.thinker.char_error_rate": _times(0.9),
    "answer.picture_used": _at(0.15),
    "answer.recording_used": _at(0.3),
    "talker.next_code": _times(0.95),
    "talker.text_used": _at(0.4),
    "talker.stop": _times(0.7),
}
"""Size nano, the whole demo."""

SHORTENED: dict[str, Margin] = DEMO | {
    "text.bits_per_byte.bigram": _times(0.97),
    "asr.char_error_rate": _at(0.6),
    "asr.thinker.char_error_rate": _times(1.0),
    "retrieval.picture_to_caption": _at(0.08),
    "codec.mel_error.8": _times(0.6),
    "codec.weakest_codebook": _times(1.0),
    "answer.picture_used": _at(0.1),
    "answer.recording_used": _at(0.15),
    "talker.next_code": _times(0.97),
    "talker.stop": _times(0.8),
}
"""Size nano with the steps continuous integration has time for."""

SPEEDRUN_NANO: dict[str, Margin] = DEMO | {
    "text.bits_per_byte.unigram": _times(0.6),
    "text.bits_per_byte.bigram": _times(0.87),
    "asr.char_error_rate": _at(0.27),
    "asr.word_error_rate": _times(0.8),
    "retrieval.picture_to_caption": _at(0.2),
    "retrieval.caption_to_picture": _at(0.2),
    "retrieval.zero_shot_group": _times(1.1),
    "codec.mel_error.8": _times(0.25),
    "answer.loss.name": _at(3.5),
    "answer.loss.name_spoken": _at(3.5),
    "answer.loss.group": _at(0.35),
    "answer.loss.group_spoken": _at(0.35),
    "asr.thinker.char_error_rate": _at(0.35),
    "answer.loss.chat": _at(3.65),
    "answer.loss.say": _at(0.05),
    "answer.group_accuracy.typed": _times(2.5),
    "answer.group_accuracy.spoken": _times(2.5),
    "answer.picture_used": _at(0.3),
    "answer.right.yes_or_no": _times(1.05),
    "answer.right.count": _times(2.5),
    "answer.recording_used": _at(0.8),
    "talker.next_code": _times(0.83),
    "talker.text_used": _at(1.1),
}
"""Size nano, 30 minutes of a CPU with hours of speech and several styles of pictures (docs/speedrun.md)."""

SPEEDRUNS: Mapping[str, Mapping[str, Margin]] = {"nano": SPEEDRUN_NANO}
"""Of the sizes whose speedruns have margins."""


def judge(
    figures: Sequence[Mapping[str, Any]], margins: Mapping[str, Margin]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Each figure with `required` and `passed`, and one line for every margin that is not met.

    A margin whose figure was not measured is not met.
    """
    judged: list[dict[str, Any]] = []
    failed: list[str] = []
    for figure in figures:
        margin = margins.get(figure["name"])
        if margin is None:
            judged.append({**figure, "required": "", "passed": None})
            continue
        limit, lower = margin.limit(figure["baseline"]), figure["better"] == "lower"
        passed = figure["value"] <= limit if lower else figure["value"] >= limit
        required = f"{'at most' if lower else 'at least'} {limit:.3g}"
        judged.append({**figure, "required": required, "passed": passed})
        if not passed:
            failed.append(f"{figure['what']}: {figure['value']:.4g}, required {required}")
    measured = {figure["name"] for figure in figures}
    failed += [f"{name}: was not measured" for name in margins if name not in measured]
    return judged, failed
