"""Unigram and bigram language models over token ids: the baselines of the text stage.

Interpolated modified Kneser-Ney (Chen and Goodman, 1999): discounts for counts 1, 2 and 3+ estimated
from the counts of counts; the unigram is discounted into the uniform distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

Tokens = Sequence[int] | np.ndarray
"""Ids of one document."""


class NGramModel:
    """A smoothed n-gram model of order 1 or 2; the first token of a document has its own context."""

    def __init__(self, documents: Iterable[Tokens], *, order: int, vocab_size: int) -> None:
        """Count the documents.

        documents: token ids in [0, vocab_size), the ending token included where it is to be predicted.
        Raises ValueError for another order, no tokens, or an id outside the vocabulary.
        """
        if order not in (1, 2):
            raise ValueError(f"order: expected 1 or 2, got {order}.")
        self.order, self.vocab_size = order, vocab_size
        arrays = [self._ids(d) for d in documents if len(d)]
        if not arrays:
            raise ValueError("documents: expected at least one token, got none.")
        tokens = np.concatenate(arrays)
        if order == 1:
            self._unigram = _interpolated(np.bincount(tokens, minlength=vocab_size))
            return
        pairs = np.concatenate([self._pairs(a) for a in arrays])
        self._keys, counts = np.unique(pairs, return_counts=True)
        # Kneser-Ney: the lower order counts in how many contexts a token was seen, not how often.
        self._unigram = _interpolated(np.bincount(self._keys % vocab_size, minlength=vocab_size))
        discount = _discounts(counts)[np.minimum(counts, 3)]
        contexts = self._keys // vocab_size
        totals = np.bincount(contexts, weights=counts, minlength=vocab_size + 1)
        held = np.bincount(contexts, weights=discount, minlength=vocab_size + 1)
        self._seen = (counts - discount) / totals[contexts]
        # A context never seen leaves everything to the unigram.
        self._backoff = np.divide(held, totals, out=np.ones_like(held), where=totals > 0)

    def probabilities(self, document: Tokens) -> np.ndarray:
        """Probability of every token given the one before it, float64 (n,)."""
        ids = self._ids(document)
        if self.order == 1 or not len(ids):
            return self._unigram[ids]
        pairs = self._pairs(ids)
        slots = np.minimum(np.searchsorted(self._keys, pairs), len(self._keys) - 1)
        direct = np.where(self._keys[slots] == pairs, self._seen[slots], 0.0)
        return direct + self._backoff[pairs // self.vocab_size] * self._unigram[ids]

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

    def _pairs(self, ids: np.ndarray) -> np.ndarray:
        """context * V + token; the context of a first token is V."""
        return np.concatenate([[self.vocab_size], ids[:-1]]) * self.vocab_size + ids


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


def _interpolated(counts: np.ndarray) -> np.ndarray:
    """Unigram probabilities (V,), all positive, summing to 1: discounted counts plus uniform mass."""
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = counts.sum()
    return (counts - discount) / total + discount.sum() / total / len(counts)
