"""Answers in words: token F1, the best constant answer as its baseline, and which answers are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence


def token_f1(references: Sequence[str], answer: str) -> float:
    """Harmonic mean of precision and recall of the answer's words, each as often as it comes; of the best reference.

    Two empty texts agree, an empty one and another do not. Source: Rajpurkar et al., SQuAD, 2016.
    Raises ValueError for no reference.
    """
    if not references:
        raise ValueError("references: expected at least one, got none.")
    return max(_f1(reference.split(), answer.split()) for reference in references)


def _f1(expected: list[str], given: list[str]) -> float:
    if not expected or not given:
        return float(expected == given)
    common = (Counter(expected) & Counter(given)).total()
    return 2.0 * common / (len(expected) + len(given))


def best_answer(candidates: Sequence[str], score: Callable[[str], float]) -> tuple[str, float]:
    """The candidate of the highest score, the first of several, and its score; "" and 0 for no candidates."""
    scored = [(score(answer), answer) for answer in dict.fromkeys(candidates)]
    best = max(scored, key=lambda pair: pair[0], default=(0.0, ""))
    return best[1], best[0]


def confusions(expected: Sequence[str], given: Sequence[str]) -> list[tuple[str, str, int]]:
    """(expected, given, times) of what differs, the most frequent first, then by name."""
    counts = Counter((e, g) for e, g in zip(expected, given, strict=True) if e != g)
    return sorted(((e, g, n) for (e, g), n in counts.items()), key=lambda row: (-row[2], row[0], row[1]))
