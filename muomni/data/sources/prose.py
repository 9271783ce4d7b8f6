"""Running text made plain and cut into pieces of whole paragraphs, as items."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

from muomni.data.sources.adapter import Found
from muomni.data.splits import normalised

PIECE = 2_000
"""Characters of a piece: about a context of 512 tokens."""

_PLAIN = str.maketrans(
    {
        "‘": "'", "’": "'", "`": "'", "“": '"', "”": '"', "–": "-", "‐": "-", "‑": "-", "—": "--", "…": "...",
        "•": "-", "\u00a0": " ", "\u00ad": "", "\u200b": "", "\ufeff": "", "\ufffd": "", "ﬁ": "fi", "ﬂ": "fl",
    }
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HYPHEN = re.compile(r"(?<=[^\s-])(--?)\n\s*(?=[^\s-])")
_SENTENCE = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)[\"')]*\s+(?=[\"'(]?[A-Z])"
)


def plain(text: str) -> str:
    """One line of text: straight quotes, hyphens and single spaces; no control or zero-width characters."""
    return " ".join(_CONTROL.sub("", text.translate(_PLAIN)).split())


def unwrapped(lines: str) -> str:
    """A wrapped paragraph as one plain line. A hyphen at a line's end is the word's own and stays."""
    return plain(_HYPHEN.sub(r"\1", lines))


def paragraphs(text: str) -> list[str]:
    """What stands between blank lines, each on one plain line."""
    return [line for block in re.split(r"\n[ \t]*\n", text) if (line := unwrapped(block))]


def _cut(paragraph: str, size: int) -> list[str]:
    """A paragraph in parts of at most size characters: of whole lines, or else sentences, or else words."""
    if len(paragraph) <= size:
        return [paragraph]
    if "\n" in paragraph:
        return _grouped([part for line in paragraph.split("\n") for part in _cut(line, size)], "\n", size)
    ends = [match.end() for match in _SENTENCE.finditer(paragraph)]
    sentences = [paragraph[a:b].strip() for a, b in zip([0, *ends], [*ends, len(paragraph)], strict=True)]
    if len(sentences) == 1:
        return textwrap.wrap(paragraph, size, break_on_hyphens=False)
    return _grouped([part for sentence in sentences for part in _cut(sentence, size)], " ", size)


def _grouped(parts: list[str], joint: str, size: int) -> list[str]:
    groups: list[str] = []
    for part in parts:
        if groups and len(groups[-1]) + len(joint) + len(part) <= size:
            groups[-1] += joint + part
        else:
            groups.append(part)
    return groups


def pieces(parts: Iterable[str], *, size: int = PIECE) -> list[str]:
    """Paragraphs, a blank line between them, in pieces of at most size characters.

    A longer paragraph is cut between lines, a longer line between sentences, a longer sentence between words. Nothing
    is left out.
    """
    return _grouped([part for whole in parts for part in _cut(whole, size)], "\n\n", size)


def word_group(word: str) -> str:
    """The group of what explains a word: in one split in every dictionary, which copy each other."""
    return f"word {normalised(word)}"


def found(identifier: str, text: str, *, group: str, technical: bool = False) -> Found:
    """A text as an item."""
    return Found(kind="texts", id=identifier, group=group, fields={"text": text, "technical": technical})


def found_pieces(work: str, parts: Iterable[str], *, technical: bool = False) -> Iterator[Found]:
    """The pieces of a work, or of a chapter of it: named WORK/0 and on, all in one split."""
    for number, text in enumerate(pieces(parts)):
        yield found(f"{work}/{number}", text, group=work, technical=technical)
