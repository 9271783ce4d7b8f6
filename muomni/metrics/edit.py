"""Edit distance, character and word error rates, and the best constant transcript as their baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Unit = Literal["char", "word"]


@dataclass(frozen=True)
class Rate:
    """Errors over reference units: sums, never a mean of per-item rates."""

    errors: int
    """Substitutions, insertions and deletions."""
    n: int
    """Reference units."""

    @property
    def value(self) -> float:
        """errors / n; 0 for no reference units and no errors, infinite when there are only insertions."""
        if self.n == 0:
            return 0.0 if self.errors == 0 else float("inf")
        return self.errors / self.n


def units(text: str, unit: Unit) -> list[str]:
    """Characters of the stripped text, or its words."""
    if unit not in ("char", "word"):
        raise ValueError(f"unit: expected 'char' or 'word', got {unit!r}.")
    return list(text.strip()) if unit == "char" else text.split()


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Levenshtein distance of two sequences (strings, words or ids), unit costs.

    One numpy row per element of the shorter sequence: the left-to-right insertions of a row are a
    running minimum of row - index. Source: Wagner and Fischer, 1974.
    """
    if len(a) > len(b):
        a, b = b, a
    table: dict[object, int] = {}
    ids = np.array([table.setdefault(item, len(table)) for item in b], dtype=np.int64)
    index = np.arange(len(b) + 1)
    row = index.copy()
    for item in a:
        row = _next_row(row, ids != table.get(item, -1), index)
    return int(row[-1])


def error_rate(references: Sequence[str], hypotheses: Sequence[str], unit: Unit = "char") -> Rate:
    """Summed edit distance over summed reference units (CER for "char", WER for "word").

    Raises ValueError when the numbers of texts differ.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"hypotheses: expected {len(references)} (one a reference), got {len(hypotheses)}.")
    errors = n = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        expected = units(reference, unit)
        errors += edit_distance(expected, units(hypothesis, unit))
        n += len(expected)
    return Rate(errors, n)


def best_constant(references: Sequence[str], unit: Unit = "char") -> list[str]:
    """The units that, given as the answer to every item, make about the fewest errors.

    Grown greedily from nothing by the unit that lowers the summed distance most, up to the mean
    reference length; the best prefix is kept. The search reads the references it is scored on, so the
    baseline is a strong one.
    """
    texts = [t for t in (units(r, unit) for r in references) if t]
    if not texts:
        return []
    table: dict[str, int] = {}
    width = max(map(len, texts))
    ids = np.full((len(texts), width), -1, dtype=np.int64)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = [table.setdefault(u, len(table)) for u in text]
    names = list(table)
    frequent = np.argsort(-np.bincount(ids[ids >= 0], minlength=len(names)), kind="stable")[:64]
    last = np.array([len(t) for t in texts])
    items, index = np.arange(len(texts)), np.arange(width + 1)
    rows = np.tile(index, (len(texts), 1))
    constant: list[int] = []
    best, best_errors = 0, int(last.sum())
    for length in range(1, int(last.mean()) + 1):
        grown = [_next_row(rows, ids != unit_id, index) for unit_id in frequent]
        # Prefixes count too: of equal totals, take the unit that helps the later ones.
        scores = [(int(g[items, last].sum()), int(g.sum())) for g in grown]
        choice = min(range(len(scores)), key=scores.__getitem__)
        rows = grown[choice]
        constant.append(int(frequent[choice]))
        if scores[choice][0] < best_errors:
            best, best_errors = length, scores[choice][0]
    return [names[i] for i in constant[:best]]


def best_constant_error_rate(references: Sequence[str], unit: Unit = "char") -> Rate:
    """Error rate of `best_constant` over the references."""
    texts = [units(r, unit) for r in references]
    constant = best_constant(references, unit)
    return Rate(sum(edit_distance(constant, t) for t in texts), sum(map(len, texts)))


def _next_row(row: np.ndarray, differs: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The Levenshtein row(s) after one more element; row (..., L + 1), differs (..., L)."""
    new = np.empty_like(row)
    new[..., 0] = row[..., 0] + 1
    np.minimum(row[..., 1:] + 1, row[..., :-1] + differs, out=new[..., 1:])
    return np.minimum.accumulate(new - index, axis=-1) + index
