"""The index of a prepared set: one column a file, mapped into memory, so that ten million items open at once.

SET/index/<column>.bin     little-endian, rows in the order of records.jsonl
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muomni.data.items import KINDS, SPLITS, Kind, Split

COLUMNS: dict[str, str] = {
    "place": "<u1",
    "length": "<u4",
    "fingerprint": "<u8",
    "record": "<u8",
    "shard": "<u2",
    "offset": "<u8",
    "size": "<u4",
}
"""place: kind and split. length: samples of a clip, bytes of a text. fingerprint: see splits.py. record: where its line
begins in records.jsonl. shard, offset, size: where its file is; size 0 for none."""
NEAR_BITS = 2
"""Fingerprints of pictures that differ in so many bits are near duplicates."""


def place(kind: Kind, split: Split) -> int:
    """Kind and split as one number."""
    return KINDS.index(kind) * len(SPLITS) + SPLITS.index(split)


@dataclass(frozen=True)
class Index:
    """The columns of one set."""

    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        """Items."""
        return len(self.columns["place"])

    def rows(self, kind: Kind, split: Split) -> np.ndarray:
        """Row numbers of a kind in a split, int64 ascending."""
        return np.flatnonzero(self.columns["place"] == place(kind, split))

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Map the columns. Raises OSError or ValueError for one that is missing, empty or of another length."""
        columns: dict[str, np.ndarray] = {
            name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r") for name, dtype in COLUMNS.items()
        }
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the columns of its index do not belong together: {lengths}")
        return cls(columns)


def save(folder: Path, rows: Sequence[dict[str, int]]) -> None:
    """Write the columns of rows, each with a value for every column."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, dtype in COLUMNS.items():
        np.array([row[name] for row in rows], dtype=dtype).tofile(folder / f"{name}.bin")


def near(fingerprints: np.ndarray, others: np.ndarray, *, bits: int = NEAR_BITS) -> np.ndarray:
    """Whether each fingerprint differs from some other one in at most `bits` bits.

    fingerprints (n,) and others (m,) uint64 -> (n,) bool. Of bits + 1 bands, two such fingerprints share one whole, so
    only those that share a band are compared.
    """
    found = np.zeros(len(fingerprints), dtype=bool)
    edges = [64 * i // (bits + 1) for i in range(bits + 2)]
    for low, high in zip(edges, edges[1:], strict=False):
        shift, mask = np.uint64(low), np.uint64((1 << (high - low)) - 1)
        mine, theirs = (fingerprints >> shift) & mask, (others >> shift) & mask
        order = np.argsort(theirs, kind="stable")
        begin = np.searchsorted(theirs[order], mine, "left")
        end = np.searchsorted(theirs[order], mine, "right")
        for k in range(int((end - begin).max(initial=0))):
            row = np.flatnonzero((begin + k < end) & ~found)
            other = others[order[begin[row] + k]]
            found[row] = np.bitwise_count(fingerprints[row] ^ other) <= bits
    return found
