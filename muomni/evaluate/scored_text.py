"""The form in which reference and hypothesis are compared: what is heard, not how it is written."""

from __future__ import annotations

import re
import unicodedata

from muomni.data.spoken import as_words


def scored_form(text: str) -> str:
    """Lower-case words of a-z: accents, punctuation and apostrophes dropped, numbers and signs as words.

    Letters read one by one are one word however they are written (a.m., a m, AM), and the "and" that some say in
    numbers is dropped. Whether 1234 was one number or four digits cannot be told from the writing.
    """
    text = as_words(unicodedata.normalize("NFKD", text.lower()))
    # Apostrophes and combining accents are inside a word, all else that is no letter is between two.
    text = re.sub("['’\u0300-\u036f]", "", text)
    text = " ".join(re.sub(r"[^a-z]+", " ", text).split())
    text = re.sub(r"\b[a-z](?: [a-z]\b)+", lambda m: m.group().replace(" ", ""), text)
    return re.sub(r"\b(hundred|thousand|million) and\b", r"\1", text)
