"""All held-out figures of a model, family by family, each with its trivial baseline, n, seed and interval."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from muomni.data.items import Source, Split
from muomni.data.prepared import open_source
from muomni.errors import UserError
from muomni.evaluate.asr import evaluate_asr
from muomni.evaluate.family import Family, HeldOut, Measured
from muomni.evaluate.heard import evaluate_heard
from muomni.evaluate.judges import Panel
from muomni.evaluate.media_use import evaluate_media_use
from muomni.evaluate.ocr import evaluate_ocr
from muomni.evaluate.retrieval import evaluate_retrieval
from muomni.evaluate.speech import Material, evaluate_codec, evaluate_talker, material
from muomni.evaluate.spoken import evaluate_spoken
from muomni.evaluate.text import evaluate_text
from muomni.evaluate.vqa import evaluate_vqa
from muomni.infer.loading import find_stage
from muomni.infer.session import Session

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, name of the family)."""

FAMILIES: dict[str, str] = {
    "text": "Text",
    "asr": "Speech recognition",
    "retrieval": "Pictures and captions",
    "answers": "Answers by likelihood, and use of media",
    "vqa": "Written answers",
    "spoken": "Spoken questions",
    "ocr": "Reading",
    "codec": "Codec",
    "talker": "Talker",
    "speech": "Speech as a recogniser hears it",
}
"""Name -> title."""
TRAINING = ("text", "asr", "retrieval", "codec", "answers", "talker")
"""Families that say whether each stage was trained."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, with the media of its cases."""

    about: dict[str, Any]
    """data, split, seed and n."""
    families: dict[str, Measured]
    seconds: dict[str, float]
    """Of each family."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; every figure and every missing one names its family."""
        return {
            **self.about,
            "seconds": self.seconds,
            "figures": [{"family": f, **x.to_dict()} for f, own in self.families.items() for x in own.figures],
            "missing": [{"family": f, **x.to_dict()} for f, own in self.families.items() for x in own.missing],
            "cases": {
                family: {title: [case.to_dict() for case in cases] for title, cases in own.cases.items()}
                for family, own in self.families.items() if own.cases
            },
            "tables": {family: own.tables for family, own in self.families.items() if own.tables},
        }  # fmt: skip


def evaluate(
    session: Session,
    root: Path | None = None,
    *,
    data: str | None = None,
    source: Source | None = None,
    split: Split = "test",
    n: int = 48,
    seed: int = 0,
    families: Sequence[str] = tuple(FAMILIES),
    panel: Panel | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure families on a held-out split of what the run was trained on, or of other data.

    root: directory of the stages, for what only training needs; without it those figures are said to be missing.
    data: prepared sets or embedded; source: in place of it. n: items of a figure at most (texts and pictures that are
    not answered about: text.MAX_HELD, retrieval.MAX_PICTURES). panel: judges of speech.
    Raises UserError for an unknown family, what `open_source` raises.
    """
    unknown = next((name for name in families if name not in FAMILIES), None)
    if unknown is not None or not families:
        given = "none" if unknown is None else repr(unknown)
        raise UserError(f"families: expected some of {', '.join(FAMILIES)}, got {given}.")
    if source is None:
        data = data or (trained_on(root) if root is not None else "embedded")
        source = open_source(data)
    held = HeldOut(
        session=session, source=source, split=split, n=n, seed=seed, root=root, panel=panel or Panel()
    )
    measures = _measures(held)
    found: dict[str, Measured] = {}
    seconds: dict[str, float] = {}
    chosen = [name for name in FAMILIES if name in families]
    for done, name in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen), name)
        started = time.perf_counter()
        found[name] = measures[name](held)
        seconds[name] = round(time.perf_counter() - started, 2)
    if progress is not None:
        progress(len(chosen), len(chosen), "done")
    about = {"data": data, "split": split, "seed": seed, "n": n}
    return Evaluation(about=about, families=found, seconds=seconds)


def trained_on(root: Path) -> str:
    """The data of a run's text stage. Raises CheckpointError when there is no such stage."""
    return find_stage(root, "text").record["config"].get("data", "embedded")


def _measures(held: HeldOut) -> dict[str, Family]:
    @cache
    def clips() -> Material:
        return material(held)

    return {
        "text": evaluate_text,
        "asr": evaluate_asr,
        "retrieval": evaluate_retrieval,
        "answers": evaluate_media_use,
        "vqa": evaluate_vqa,
        "spoken": evaluate_spoken,
        "ocr": evaluate_ocr,
        "codec": lambda held: evaluate_codec(held, clips()),
        "talker": lambda held: evaluate_talker(held, clips()),
        "speech": evaluate_heard,
    }
