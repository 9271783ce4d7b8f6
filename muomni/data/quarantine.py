"""Samples that cannot be used: left out of a run with id and reason, counted, within a budget, never silently.

    RUN/<stage>/quarantine.jsonl    {"id": ..., "reason": ..., "split": ...}, each sample once

Whether a sample is bad depends on the sample alone, so that every process and every resume leaves out the same.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from muomni import files
from muomni.data.media import MediaError
from muomni.errors import UserError

_LOG = logging.getLogger(__name__)

NAME = "quarantine.jsonl"
SHOWN = 3
"""Samples named in a message; the list has them all."""


class BadDataError(UserError, RuntimeError):
    """More samples than train.bad_samples allows cannot be used."""


class Identified(Protocol):
    """What can be left out."""

    @property
    def id(self) -> str:
        """Its name in a split."""
        ...


Item = TypeVar("Item", bound=Identified)
Value = TypeVar("Value")


class Quarantine:
    """The samples that one run of one stage leaves out."""

    def __init__(self, stage: str, *, share: float) -> None:
        """share: of the samples of a split, how many may be bad."""
        self.stage, self.share = stage, share
        self.n_items: dict[str, int] = {}
        """Samples of each split, bad ones included."""
        self.dropped: dict[str, int] = {}
        """Sound samples of each split that the configuration has no room for; not part of the budget."""
        self._reasons: dict[tuple[str, str], str] = {}
        self._path: Path | None = None

    def keep(
        self, items: Sequence[Item], read: Callable[[Item], Value], *, split: str
    ) -> list[tuple[Item, Value]]:
        """All samples of a split with what `read` gives for each, in order, without those it raises MediaError for.

        The budget is judged by `open`, or here when it has been called.
        """
        self.expect(split, len(items))
        kept = []
        for item in items:
            try:
                kept.append((item, read(item)))
            except MediaError as error:
                self._reasons.setdefault((split, item.id), str(error))
        if self._path is not None:
            self._write()
        return kept

    def expect(self, split: str, n_items: int) -> None:
        """How many samples a split has, for one whose samples are read while training."""
        self.n_items[split] = n_items

    def read(self, item: Item, read: Callable[[Item], Value], *, split: str) -> Value | None:
        """What `read` gives for a sample that is read while training, or None for a bad one.

        The caller leaves its room in the batch empty: the order knows nothing of it. Raises BadDataError beyond the
        budget. Works in every process that makes batches.
        """
        if (split, item.id) in self._reasons:
            return None
        try:
            return read(item)
        except MediaError as error:
            self._reasons[split, item.id] = str(error)
        if self._path is not None:
            self._write()
        return None

    def open(self, directory: Path, *, resume: bool) -> None:
        """Keep the list in this directory from now on: one that is there is gone on with, or else replaced.

        Raises BadDataError when the budget is exceeded; the list is written first.
        """
        self._path = directory / NAME
        if not resume:
            self._path.unlink(missing_ok=True)
        self._write()

    def close(self) -> None:
        """Keep no list any more; what was found is known still, and written when it is opened again."""
        self._reasons |= _listed(self._path) if self._path is not None else {}
        self._path = None

    def counts(self) -> dict[str, int]:
        """Bad samples of each split that has any, those found by other processes included."""
        if self._path is not None:
            self._reasons |= _listed(self._path)
        return dict(sorted(Counter(split for split, _ in self._reasons).items()))

    def _write(self) -> None:
        """Add what is new to the list, say so, and judge the budget."""
        assert self._path is not None
        listed = _listed(self._path)
        new = {key: reason for key, reason in self._reasons.items() if key not in listed}
        if new:
            lines = [{"id": id_, "reason": reason, "split": split} for (split, id_), reason in new.items()]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.append(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._reasons |= listed
        for split, count in self.counts().items():
            found = [(id_, reason) for (own, id_), reason in self._reasons.items() if own == split]
            n_items = self.n_items.get(split)
            if n_items is not None and count > self.share * n_items:
                raise BadDataError(
                    f"stage {self.stage}: {count} of {n_items} samples of split {split} cannot be used, at most "
                    f"{100 * self.share:.3g} % may be: {_first(found)}. All are in {self._path}; mend or remove them, "
                    "or raise train.bad_samples."
                )
            fresh = [(id_, reason) for (own, id_), reason in new.items() if own == split]
            if fresh:
                _LOG.warning(
                    "stage %s: %d of %s samples of split %s cannot be used and are left out, new ones: %s. "
                    "All are in %s.",
                    self.stage, count, n_items, split, _first(fresh), self._path,
                )  # fmt: skip


def _first(found: Sequence[tuple[str, str]]) -> str:
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    shown = ((id_, reason.removeprefix(f"{id_}: ").rstrip(".")) for id_, reason in found[:SHOWN])
    return "; ".join(f"{id_} ({reason})" for id_, reason in shown) + more


def _listed(path: Path) -> dict[tuple[str, str], str]:
    """The list on the disk; a line cut by a kill is left out, its sample is found again."""
    found: dict[tuple[str, str], str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[row["split"], row["id"]] = row["reason"]
    return found
