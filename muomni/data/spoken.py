"""How numbers and signs are read aloud in English."""

from __future__ import annotations

import re

from num2words import num2words

_SIGNS = {"&": " and ", "*": " star ", "#": " pound ", "%": " percent ", "@": " at ", "+": " plus "}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MOST_DIGITS = 15
"""Of a number that is read as one; a longer one is read digit by digit."""
_NUMBER = re.compile(r"(?<!\d)(\d+(?:\.\d+)?)(st|nd|rd|th)?\b")


def as_words(text: str) -> str:
    """Numbers, ordinals, dollars and signs as words; all else as it is. 1,234 is one number.

    Of more than 15 characters, it is read digit by digit.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\$(\d+(?:\.\d+)?)", r"\1 dollars", text)
    text = _NUMBER.sub(_words, text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    return text


def _words(match: re.Match[str]) -> str:
    number, ending = match.groups()
    as_ordinal = ending is not None and "." not in number
    if len(number) > _MOST_DIGITS:
        *digits, last = ("point" if sign == "." else _DIGITS[int(sign)] for sign in number)
        return f" {' '.join(digits)} {num2words(int(number[-1]), ordinal=True) if as_ordinal else last} "
    value = float(number) if "." in number else int(number)
    return f" {num2words(value, ordinal=as_ordinal)} "
