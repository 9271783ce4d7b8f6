"""Prepared sets as one source: records in memory, files read from tar shards when they are used.

    ROOT/<set>/manifest.json  records.jsonl  index/<column>.bin  shard-00000.tar ...  quarantine.jsonl

ROOT is $MUOMNI_DATA, or else muomni/data in the user's cache directory.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muomni.data import embedded
from muomni.data.index import Index, near
from muomni.data.items import KINDS, SPLITS, Item, Kind, PictureItem, Source, Split, read_item
from muomni.data.sources import RECIPES
from muomni.data.splits import normalised
from muomni.errors import UserError

FORMAT = 1
"""Of a prepared set on disk."""
MANIFEST = "manifest.json"
HELD_FROM: dict[Split, tuple[Split, ...]] = {
    "train": ("validation", "test"),
    "validation": ("test",),
    "test": (),
}
"""Splits whose items, and near duplicates of them, a split must not have."""


class PreparedDataError(UserError, RuntimeError):
    """A prepared set is missing, of another format, or changed."""


def data_root() -> Path:
    """Where prepared sets are kept."""
    chosen = os.environ.get("MUOMNI_DATA")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "muomni" / "data"


def folders(names: str, *, root: Path | None = None) -> list[Path]:
    """The sets that a run's `data` names: by name, by path, or small and full for a recipe's.

    Raises PreparedDataError for one that is not prepared.
    """
    root = root or data_root()
    found: list[Path] = []
    for name in (part.strip() for part in names.split(",")):
        for one in RECIPES.get(name, (name,)):
            folder = root / one if (root / one / MANIFEST).is_file() else Path(one)
            if not (folder / MANIFEST).is_file():
                raise PreparedDataError(
                    f"data: {one!r} is not prepared in {root}; run `muomni data prepare {name}`."
                )
            found.append(folder)
    return list(dict.fromkeys(found))


@functools.cache
def open_source(names: str) -> Source:
    """What a run is trained on: `embedded`, or prepared sets together. Raises PreparedDataError for one not there."""
    return embedded.SET if names == "embedded" else Prepared(folders(names))


def manifest(folder: Path) -> dict[str, Any]:
    """What a set is, holds and came from. Raises PreparedDataError for another format."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        raise PreparedDataError(f"{folder / MANIFEST}: is not JSON; prepare the set again.") from None
    if found.get("format") != FORMAT:
        raise PreparedDataError(
            f"{folder}: is of format {found.get('format')}, expected {FORMAT}; prepare the set again."
        )
    return found


def verify(folder: Path) -> int:
    """Check every file against the manifest's SHA-256; the number of files.

    Raises PreparedDataError naming the first that is missing or differs.
    """
    files = manifest(folder)["files"]
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise PreparedDataError(f"{path}: missing; prepare the set again.")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != expected["sha256"]:
            raise PreparedDataError(
                f"{path}: SHA-256 {digest[:12]}..., expected {expected['sha256'][:12]}...; prepare the set again."
            )
    return len(files)


class Prepared(Source):
    """Several prepared sets as one; an item that is nearly one of a split it is held from, in any set, is left out."""

    admitted = True

    def __init__(self, folders: Sequence[Path]) -> None:
        """Map the indices. Raises PreparedDataError for a set that cannot be opened."""
        self.folders = list(folders)
        self._indices: list[Index] = []
        for folder in self.folders:
            manifest(folder)
            try:
                self._indices.append(Index.load(folder / "index"))
            except (OSError, ValueError) as error:
                raise PreparedDataError(f"{folder}: {error}; prepare the set again.") from None
        self.left_out = dict.fromkeys(KINDS, 0)
        """Items of each kind that are near duplicates of those of a split they are held from."""
        self._kept: dict[tuple[Kind, Split], list[np.ndarray]] = {}
        self._items: dict[tuple[Kind, Split], list[Item]] = {}
        self._places: dict[str, tuple[int, int]] = {}

    def rows(self, kind: Kind, split: Split) -> list[np.ndarray]:
        """Row numbers of each set, near duplicates left out."""
        if (kind, split) not in self._kept:
            rows = [index.rows(kind, split) for index in self._indices]
            if HELD_FROM[split]:
                held = self._fingerprints([kind], HELD_FROM[split])
                # The same thing drawn in another set looks different.
                names = (
                    {self._name(item) for held_out in HELD_FROM[split] for item in self.pictures(held_out)}
                    if kind == "pictures"
                    else set()
                )
                for i, (index, own) in enumerate(zip(self._indices, rows, strict=True)):
                    mine = index.columns["fingerprint"][own]
                    alike = near(mine, held) if kind == "pictures" else np.isin(mine, held)
                    if names:
                        alike |= np.array(
                            [self._name(item) in names for item in self._read(kind, i, own)], bool
                        )
                    rows[i] = own[~alike]
                    self.left_out[kind] += int(alike.sum())
            self._kept[kind, split] = rows
        return self._kept[kind, split]

    def _fingerprints(self, kinds: Sequence[Kind], splits: Sequence[Split]) -> np.ndarray:
        """All of them, of all sets, each once."""
        own = [
            index.columns["fingerprint"][index.rows(kind, split)]
            for index in self._indices for kind in kinds for split in splits
        ]  # fmt: skip
        return np.unique(np.concatenate(own)) if own else np.zeros(0, np.uint64)

    def items(self, kind: Kind, split: Split) -> list[Item]:
        """The items of a kind in a split, set by set."""
        if (kind, split) not in self._items:
            found: list[Item] = []
            for n, rows in enumerate(self.rows(kind, split)):
                for row, item in zip(rows.tolist(), self._read(kind, n, rows), strict=True):
                    self._places[item.id] = (n, row)
                    found.append(item)
            self._items[kind, split] = found
        return self._items[kind, split]

    def _read(self, kind: Kind, n: int, rows: np.ndarray) -> Iterator[Item]:
        """The items of some rows of set n."""
        if not len(rows):
            return
        with (self.folders[n] / "records.jsonl").open("rb") as file:
            for start in self._indices[n].columns["record"][rows].tolist():
                file.seek(start)
                yield read_item(kind, json.loads(file.readline()))

    @staticmethod
    def _name(item: Item) -> str:
        assert isinstance(item, PictureItem)
        return normalised(item.label)

    def fingerprints(self, kind: Kind, split: Split) -> np.ndarray:
        """Of each item, uint64, in the order of `items`: of its text, or of a picture's looks."""
        own = [
            index.columns["fingerprint"][rows]
            for index, rows in zip(self._indices, self.rows(kind, split), strict=True)
        ]
        return np.concatenate(own)

    def lengths(self, kind: Kind, split: Split) -> np.ndarray:
        """Samples of each clip or bytes of each text, int64, in the order of `items`."""
        own = [
            index.columns["length"][rows].astype(np.int64)
            for index, rows in zip(self._indices, self.rows(kind, split), strict=True)
        ]
        return np.concatenate(own)

    def file(self, item: Item) -> bytes:
        """An item's file as it is stored."""
        n, row = self._places[item.id]
        columns = self._indices[n].columns
        shard, offset, size = (int(columns[name][row]) for name in ("shard", "offset", "size"))
        with (self.folders[n] / f"shard-{shard:05d}.tar").open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def counts(self) -> dict[Kind, dict[Split, int]]:
        """Items of each kind there is, by split."""
        found: dict[Kind, dict[Split, int]] = {}
        for kind in KINDS:
            by_split: dict[Split, int] = {s: sum(map(len, self.rows(kind, s))) for s in SPLITS}
            if sum(by_split.values()):
                found[kind] = by_split
        return found
