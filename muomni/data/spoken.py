"""How numbers and signs are read aloud in English."""

from __future__ import annotations

import re

from num2words import num2words

_SIGNS = {"&": " and ", "*": " star ", "#": " pound ", "%": " percent ", "@": " at ", "+": " plus "}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(st|nd|rd|th)?\b")


def as_words(text: str) -> str:
    """Numbers, ordinals, dollars and signs as words; all else as it is. 1,234 is one number."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\$(\d+(?:\.\d+)?)", r"\1 dollars", text)
    text = _NUMBER.sub(_words, text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    return text


def _words(match: re.Match[str]) -> str:
    number, ordinal = match.groups()
    value = float(number) if "." in number else int(number)
    return f" {num2words(value, ordinal=bool(ordinal) and '.' not in number)} "
