"""N-gram language models of any order over token ids: the baselines of the text stage.

Interpolated modified Kneser-Ney (Chen and Goodman, 1999): discounts for counts 1, 2 and 3+ estimated
from the counts of counts of each order; the unigram is discounted into the uniform distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Tokens = Sequence[int] | np.ndarray
"""Ids of one document."""


@dataclass(frozen=True)
class _Order:
    """What is known of the n-grams of one length."""

    keys: np.ndarray
    """(G,) sorted: number of the context in the table below, times V + 1, plus the last symbol."""
    direct: np.ndarray
    """(G,) discounted relative frequency of the last symbol behind its context."""
    left: np.ndarray
    """(contexts,) mass of each context that goes to the order below."""

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Numbers of n-grams, -1 for one that was not seen."""
        slots = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[slots] == keys, slots, -1)


class NGramModel:
    """A smoothed n-gram model; before a document's first token stand symbols of their own, which are not predicted."""

    def __init__(self, documents: Iterable[Tokens], *, order: int, vocab_size: int) -> None:
        """Count the documents.

        documents: token ids in [0, vocab_size), the ending token included where it is to be predicted. order: tokens of
        an n-gram, 1 or more.
        Raises ValueError for another order, no tokens, or an id outside the vocabulary.
        """
        if order < 1:
            raise ValueError(f"order: expected 1 or more, got {order}.")
        self.order, self.vocab_size = order, vocab_size
        arrays = [self._ids(d) for d in documents if len(d)]
        if not arrays:
            raise ValueError("documents: expected at least one token, got none.")
        symbols = np.concatenate([self._padded(a) for a in arrays])
        self._orders = list(self._count(symbols))

    def probabilities(self, document: Tokens) -> np.ndarray:
        """Probability of every token given those before it, float64 (n,)."""
        symbols = self._padded(self._ids(document))
        p = np.full(len(symbols), 1.0 / self.vocab_size)
        contexts = np.zeros(len(symbols), dtype=np.int64)
        for table in self._orders:
            known = contexts >= 0
            grams = table.find(np.where(known, contexts * (self.vocab_size + 1) + symbols, -1))
            # A context that was never seen leaves everything to the order below.
            left = np.where(known, table.left[contexts], 1.0)
            p = np.where(grams >= 0, table.direct[grams], 0.0) + left * p
            contexts = np.concatenate([[-1], grams[:-1]])
        return p[self.order - 1 :]

    def nll(self, document: Tokens) -> float:
        """Negative log-likelihood of a whole document, nats."""
        return float(-np.log(self.probabilities(document)).sum())

    def _ids(self, document: Tokens) -> np.ndarray:
        ids = np.asarray(document, dtype=np.int64)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise ValueError(
                f"document: expected ids in [0, {self.vocab_size}), got {ids.min()}..{ids.max()}."
            )
        return ids

    def _padded(self, ids: np.ndarray) -> np.ndarray:
        """order - 1 starting symbols, V, and the ids."""
        return np.concatenate([np.full(self.order - 1, self.vocab_size, dtype=np.int64), ids])

    def _count(self, symbols: np.ndarray) -> Iterable[_Order]:
        """The tables of all orders, the unigrams' first.

        symbols: all padded documents behind one another. What reaches over the start of a document ends in a starting
        symbol, is a context of nothing, and is counted as never seen.
        """
        size, start = self.vocab_size + 1, self.vocab_size
        grams, firsts, numbers = [], [], []
        contexts, n_contexts = np.zeros(len(symbols), dtype=np.int64), [1]
        for _ in range(self.order):
            keys, first, number = np.unique(contexts * size + symbols, return_index=True, return_inverse=True)
            grams.append(keys)
            firsts.append(first)
            numbers.append(number)
            n_contexts.append(len(keys))
            # The first positions have no context of this length; theirs is never asked for.
            contexts = np.concatenate([[0], number[:-1]])
        for i, keys in enumerate(grams):
            said = symbols != start
            counts = np.bincount(numbers[i][said], minlength=len(keys))
            if i + 1 < self.order:
                # Kneser-Ney: a lower order counts what a token was seen behind, not how often; but nothing is
                # before a start, so what begins with one keeps its count (as in KenLM).
                above = firsts[i + 1]
                above = above[symbols[above] != start]
                behind = np.bincount(numbers[i][above], minlength=len(keys))
                begun = symbols[np.maximum(firsts[i] - i, 0)] == start
                counts = np.where(begun, counts, behind)
            discount = _discounts(counts)[np.minimum(counts, 3)]
            owner = keys // size
            totals = np.bincount(owner, weights=counts, minlength=n_contexts[i])
            held = np.bincount(owner, weights=discount, minlength=n_contexts[i])
            seen = np.divide(counts - discount, totals[owner], out=np.zeros(len(keys)), where=counts > 0)
            yield _Order(keys, seen, np.divide(held, totals, out=np.ones_like(held), where=totals > 0))


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Bits per byte of a text whose negative log-likelihood is given in nats."""
    if n_bytes <= 0:
        raise ValueError(f"n_bytes: expected a positive number, got {n_bytes}.")
    return nats / math.log(2) / n_bytes


def entropy(counts: Sequence[int] | np.ndarray) -> float:
    """Entropy of the relative frequencies, nats; 0 when nothing was counted."""
    seen = np.asarray(counts, dtype=np.float64)
    seen = seen[seen > 0]
    p = seen / seen.sum() if len(seen) else seen
    return float(-(p * np.log(p)).sum())


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Modified Kneser-Ney discounts of counts 0, 1, 2 and 3+, each in (0, count)."""
    n1, n2, n3, n4 = (float((counts == k).sum()) for k in (1, 2, 3, 4))
    # Tiny or odd samples have empty counts of counts; 0.75 is the usual fixed discount.
    if min(n1, n2, n3) == 0:
        return np.array([0.0, 0.75, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    raw = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([0.0, *(min(max(d, 0.1), k - 0.05) for k, d in enumerate(raw, start=1))])
