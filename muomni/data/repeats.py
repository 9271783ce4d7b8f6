"""Texts to be repeated: to be said, or to be written down as an ear spells them. The answer is the text itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muomni.data.audio import normalise_transcript
from muomni.data.wordings import SAY, wordings

AS_IT_IS = 0.5
"""Of the texts, how many are to be said as they are; the others are spelled as an ear spells."""
SAID = 0.5
"""Of those that are spelled so, how many are to be said; the others stand where a recording's spelling stands."""
MISSPELT = (0.0, 0.1, 0.2, 0.3)
"""Of a text's letters, how many an ear gets wrong: each as often."""
LOST, TWICE = 0.45, 0.15
"""Of the wrong ones, how many are missing or doubled; the others are taken for one that sounds alike."""
_ALIKE = {
    "a": "eo", "b": "pv", "c": "ks", "d": "tb", "e": "ai", "f": "v", "g": "kj", "h": "e", "i": "ey", "k": "cg",
    "l": "r", "m": "n", "n": "ml", "o": "ua", "p": "b", "r": "l", "s": "cz", "t": "dh", "u": "ow", "v": "fb",
    "w": "u", "y": "i", "z": "s",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A text that is asked for."""

    heard: str = ""
    """What stands before the question as if an ear had spelled it; empty: the question holds the text."""
    question: str
    answer: str
    """What is to be repeated, misspelt words as they are."""


def repeat(text: str, draw: np.random.Generator) -> Repeat:
    """How a text is asked for.

    Words that no text holds teach to copy what stands there rather than what one expects.
    """
    spelled = misspelt(normalise_transcript(text), draw, share=MISSPELT[draw.integers(len(MISSPELT))])
    if not spelled or draw.random() < AS_IT_IS:
        return Repeat(question=SAY + text, answer=text)
    if draw.random() < SAID:
        return Repeat(question=SAY + spelled, answer=spelled)
    asks = wordings("transcribe", "train")
    return Repeat(heard=spelled, question=asks[draw.integers(len(asks))], answer=spelled)


def misspelt(text: str, draw: np.random.Generator, *, share: float) -> str:
    """A transcript of `normalise_transcript` with a share of its letters wrong, as an ear might spell it."""
    wrong = draw.random(len(text)) < share
    letters = (_wrong(letter, draw) if bad else letter for letter, bad in zip(text, wrong, strict=True))
    return " ".join("".join(letters).split())


def _wrong(letter: str, draw: np.random.Generator) -> str:
    luck, alike = draw.random(), _ALIKE.get(letter, letter)
    if luck < LOST:
        return ""
    return 2 * letter if luck < LOST + TWICE else alike[draw.integers(len(alike))]
