"""What a metric family is given, and what it gives: figures, what could not be measured, and cases to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from muomni.data.items import Source, Split
from muomni.evaluate.figure import Figure
from muomni.evaluate.judges import Panel
from muomni.infer.loading import find_stage
from muomni.infer.session import Session
from muomni.models.thinker import Thinker
from muomni.models.vision import ContrastModel
from muomni.models.weights import CheckpointError

SHOWN = 6
"""Cases of each kind that are kept to be looked at."""
Some = TypeVar("Some")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A model and the held-out items it is measured on."""

    session: Session
    source: Source
    split: Split = "test"
    n: int = 48
    """Items of a figure at most, spread over the split."""
    seed: int = 0
    """Of the bootstrap and of the Talker."""
    panel: Panel = field(default_factory=Panel)
    """Independent judges of speech, those that were asked for."""
    root: Path | None = None
    """Directory of the trained stages; None for a model without them."""

    def chosen(self, items: Sequence[Some]) -> list[Some]:
        """At most n items, evenly spaced."""
        return spread(items, self.n)

    @cached_property
    def text_thinker(self) -> Thinker | str:
        """The Thinker as the text stage left it, before it saw any media; or why there is none."""
        if self.root is None:
            return "the model has no directory of stages, so no Thinker of stage text"
        try:
            weights = find_stage(self.root, "text").weights({"thinker.": ""})
        except CheckpointError as error:
            return str(error).rstrip(".")
        thinker = Thinker(self.session.config.thinker)
        thinker.load_state_dict(weights)
        return thinker.to(self.session.engine.device).eval()

    @cached_property
    def contrast(self) -> ContrastModel | str:
        """Both towers of the vision stage; or why there are none."""
        if self.root is None:
            return "the model has no directory of stages, so no text tower of stage vision"
        try:
            weights = find_stage(self.root, "vision").weights({"": ""})
        except CheckpointError as error:
            return str(error).rstrip(".")
        config = self.session.config
        model = ContrastModel(config.vision, vocab_size=config.thinker.vocab_size)
        model.load_state_dict(weights)
        return model.to(self.session.engine.device).eval()


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A figure that was not measured."""

    name: str
    why: str
    """One clause without a full stop."""

    def to_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        return {"name": self.name, "why": self.why}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One held-out item: what was expected and what came."""

    item: str
    expected: str
    given: str
    error: float
    """How wrong it is, for the order; of no meaning between kinds of cases."""
    asked: str = ""
    pictures: tuple[bytes, ...] = ()
    """Files of what was shown."""
    heard: np.ndarray | None = None
    """(n_samples,) float32: what was played to the model."""
    said: np.ndarray | None = None
    """(n_samples,) float32: what the model said."""

    def to_dict(self) -> dict[str, Any]:
        """Its words, for JSON; media are for the page."""
        words = {"item": self.item, "asked": self.asked, "expected": self.expected, "given": self.given}
        return words | {"error": round(self.error, 6)}


@dataclass(kw_only=True)
class Measured:
    """What a family gives."""

    figures: list[Figure] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    cases: dict[str, list[Case]] = field(default_factory=dict)
    """Title -> cases, the worst first."""
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    """Title -> rows of text, the header first."""

    def skip(self, why: str, *names: str) -> None:
        """Note figures that cannot be measured, and why."""
        self.missing += [Missing(name=name, why=why) for name in names]


Family = Callable[[HeldOut], Measured]


def spread(items: Sequence[Some], n: int) -> list[Some]:
    """At most n items, evenly spaced: no choosing of good ones."""
    return [items[i * len(items) // n] for i in range(n)] if len(items) > n else list(items)


def worst(cases: Iterable[Case], n: int = SHOWN) -> list[Case]:
    """The n cases with the largest error, in order of it; of equal ones those that came first."""
    return sorted(cases, key=lambda case: -case.error)[:n]
