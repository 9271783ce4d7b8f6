"""The form in which reference and hypothesis are compared: what is heard, not how it is written."""

from __future__ import annotations

import re
import unicodedata

from num2words import num2words

_SIGNS = {"&": " and ", "*": " star ", "#": " pound ", "%": " percent ", "@": " at ", "+": " plus "}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(st|nd|rd|th)?\b")


def _words(match: re.Match[str]) -> str:
    number, ordinal = match.groups()
    value = float(number) if "." in number else int(number)
    return f" {num2words(value, ordinal=bool(ordinal) and '.' not in number)} "


def scored_form(text: str) -> str:
    """Lower-case words of a-z: accents, punctuation and apostrophes dropped, numbers and signs as words.

    Letters read one by one are one word however they are written (a.m., a m, AM), and the "and" that some say in
    numbers is dropped. Whether 1234 was one number or four digits cannot be told from the writing.
    """
    text = unicodedata.normalize("NFKD", text.lower())
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\$(\d+(?:\.\d+)?)", r"\1 dollars", text)
    text = _NUMBER.sub(_words, text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    # Apostrophes and combining accents are inside a word, all else that is no letter is between two.
    text = re.sub("['’\u0300-\u036f]", "", text)
    text = " ".join(re.sub(r"[^a-z]+", " ", text).split())
    text = re.sub(r"\b[a-z](?: [a-z]\b)+", lambda m: m.group().replace(" ", ""), text)
    return re.sub(r"\b(hundred|thousand|million) and\b", r"\1", text)
