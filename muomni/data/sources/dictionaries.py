"""Prose of dictionaries: GCIDE's definitions, and articles of FOLDOC and the Jargon File on computing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from muomni.data.sources import dictd, prose
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.chitchat import is_unwanted
from muomni.data.sources.fetch import Package, fetch

GCIDE = Package(
    registry="debian",
    name="dict-gcide",
    version="0.48.5+nmu2",
    sha256="7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
    n_bytes=14_800_692,
    licence="GPL-2.0-or-later",
    attribution="GNU Collaborative International Dictionary of English, from Webster's 1913 dictionary",
    gives="definitions (gcide.dict.dz)",
)
FOLDOC = Package(
    registry="debian",
    name="dict-foldoc",
    version="20230119-1",
    sha256="745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
    n_bytes=2_408_824,
    licence="GFDL-1.1-or-later, no invariant sections",
    attribution="The Free On-line Dictionary of Computing, http://www.foldoc.org/, Editor Denis Howe",
    gives="articles (foldoc.dict.dz)",
)
JARGON = Package(
    registry="debian",
    name="dict-jargon",
    version="4.4.7-3.1",
    sha256="405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1",
    n_bytes=621_608,
    licence="public domain",
    attribution="The Jargon File, version 4.4.7, 29 Dec 2003",
    gives="articles (jargon.dict.dz)",
)
SHORTEST = 40
"""Characters that an entry's longest paragraph has at least; those below are mostly references to others."""

_ACCENTS = {"`": "\u0300", "'": "\u0301", "^": "\u0302", '"': "\u0308", "~": "\u0303"}
_ACCENTED = re.compile(r"\[([`'^\"~])([A-Za-z])\]")
_SYMBOLS = {
    "[ae]": "ae", "[AE]": "AE", "[oe]": "oe", "[OE]": "OE", "[c,]": "ç", "[eth]": "th", "[deg]": " degrees",
    "[min]": " minutes", "[sec]": " seconds", "[pound]": "£", "[times]": "x", "[plus]": "+", "[minus]": "-",
}  # fmt: skip
_FRACTION = re.compile(r"\[frac(\d)[x/]?(\d+)\]")
_BRACKETED = re.compile(r"\s*\[[^\[\]]*\]")
_SOURCE = re.compile(r"\[(?:1913 Webster|Webster 1913|PJC|AE|Century)[^\]]*\][^\n]*")
"""With what follows on its line: sometimes the next headword, by mistake."""
_FIELD = re.compile(r"\s*\((?:[A-Z][a-z]*\.(?: ?[&,]? ?|$))+(?:[A-Z]?[a-z]+\.?)?\)")
_AUTHOR = re.compile(
    r"\s*(?:--(?:(?:[A-Z][\w']{0,2}\.|[A-Z][\w']*) )*[A-Z][\w']*\.|--\s?[A-Z(][\w.&' ,()]*$|"
    r"(?:-- )?\b[A-Za-z]\w*[\"*'][\w\"*'-]*(?: \(\?\))?, (?:n|a|adv|v)\.(?: [ti]\.)?)"
)
"""Who is quoted; and derived words, whose hyphenation is marked."""
_HEAD_PART = re.compile(
    r"\s*[,;:.]?\s*(?:\\[^\\]*\\|\((?![a-h]\) )[^()]*\)|(?:(?:from|of)\s+)?\{[^{}]*\}|"
    r"[A-Za-z][\w' *-]*(?=\s*\\)|&|[A-Z]{1,2}\.|"
    r"(?:n|a|adj|adv|v|t|i|vb|prep|prop|conj|interj|pron|p|pr|pl|sing|imp|pres|superl|compar|obs|fem|masc)\.|(?:or|and)\b)"
)
_UNREAD = re.compile(r"[\[\]\\{}]|\?\?|\(\?")
"""What is left of codes, and of letters that were not legible."""
_LIST = re.compile(r"(?:\b[A-Z][a-z-]+ ){8}")
"""Of derived words, hundreds long."""


def _balanced(text: str, start: int) -> int:
    """Where the bracket that opens at start is closed; the end of the text if nowhere."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"[": 1, "]": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)


def _after_head(text: str) -> str:
    """What follows pronunciation, part of speech and etymology in an entry's first paragraph."""
    place = text.find("\\")
    line = text.find("\n")
    place = place if place >= 0 and (line < 0 or place < line) else max(text.find(" "), 0)
    while True:
        if opened := re.compile(r"\s*[,;]?\s*\[").match(text, place):
            place = _balanced(text, opened.end() - 1)
        elif part := _HEAD_PART.match(text, place):
            place = part.end()
        else:
            return text[place:].lstrip(" ,;.\n")


def _spelled(text: str) -> str:
    """GCIDE's codes for letters that ASCII lacks, as the letters; other brackets are left out."""
    text = _ACCENTED.sub(lambda m: unicodedata.normalize("NFC", m[2] + _ACCENTS[m[1]]), text)
    for code, letters in _SYMBOLS.items():
        text = text.replace(code, letters)
    text = _FRACTION.sub(r"\1/\2", text)
    for _ in range(3):
        text = _BRACKETED.sub("", text)
    return text


def gcide_entry(entry: str) -> tuple[str, list[str]]:
    """A headword and the prose of its definitions.

    Left out: pronunciation, part of speech, etymology, synonyms, quotations, fields and sources in brackets, and what
    was taken from WordNet, which is a set of its own.
    """
    head = re.split(r"[\\\n]", entry, maxsplit=1)[0].split(" [")[0].strip(" ,;")
    found: list[str] = []
    for number, block in enumerate(re.split(r"\n[ \t]*\n", entry.strip("\n"))):
        indent = len(block) - len(block.lstrip())
        if "[WordNet" in block or indent >= 9:
            continue
        text = _after_head(block) if number == 0 else block
        text = prose.unwrapped(_spelled(_SOURCE.sub("", text)))
        text = _AUTHOR.sub("", _FIELD.sub("", text.replace("{", "").replace("}", "")))
        text = re.sub(r"^(?:Note|Usage): ", "", text.strip())
        text = re.sub(r" ([.,;:])", r"\1", " ".join(text.split()))
        text = re.sub(r"^(\d+\. )\d ", r"\1", text)
        if (
            _LIST.search(text)
            or _UNREAD.search(text)
            or re.match(r"Syn:|(?:Same as|See|Cf\.) [^.]*\.?$", text)
            or not re.search(r"[a-z]{3}", text)
        ):
            continue
        found.append(text)
    return head, [re.sub(r"^1\. ", "", found[0])] if len(found) == 1 else found


def foldoc_entry(entry: str) -> tuple[str, list[str]]:
    """A headword and its article, without categories, links, addresses, dates, references and examples of code.

    What it has from the Jargon File is left out: that is a set of its own.
    """
    first, *blocks = re.split(r"\n[ \t]*\n", entry.strip("\n"))
    found: list[str] = []
    for block in blocks if "[{Jargon File}]" not in entry else ():
        if len(block) - len(block.lstrip()) > 4:
            continue
        text = re.sub(r"^(\d+\. )?<[^<>@]*>\s*", r"\1", block.strip())
        text = re.sub(
            r"\s*(?:<[^<>\s]*>|\{?\(?(?:https?|ftp|news|telnet):[^\s)]*\)?\}?)", "", prose.unwrapped(text)
        )
        text = text.replace("{", "").replace("}", "").strip()
        if re.match(r"[\[(][^\[\]]*[\])]\.?$", text) or not re.search(r"[a-z]{3}.*[a-z]{3}", text):
            continue
        if re.match(
            r"(?:[\w -]*(?:home|page|FAQ|Usenet newsgroup)s?|E-?mail|Telephone|Address)\b[^.]{0,20}[.:]?$",
            text,
            re.I,
        ):
            continue
        found.append(text)
    return ", ".join(first.split("\n")), found


def jargon_entry(entry: str) -> tuple[str, list[str]]:
    """A headword and its article, without pronunciation, part of speech, links, tables and examples of code."""
    head, _, rest = entry.strip("\n").partition("\n")
    rest = re.sub(r"\A(?: ?\S[^\n]*\n)+", "", rest)
    found: list[str] = []
    for block in re.split(r"\n[ \t]*\n", rest):
        if len(block.strip("\n")) - len(block.strip("\n").lstrip()) > 4 or re.search(
            r"[\u2500-\u257f]", block
        ):
            continue
        text = re.sub(r"\{\s*|\s*\}", "", prose.unwrapped(block))
        text = re.sub(r"^\[[^\[\]]*\]\s*", "", text)
        if re.search(r"[a-z]{3}", text):
            found.append(text)
    return head.strip(), found


def _find(
    package: Package, read: Callable[[str], tuple[str, list[str]]], technical: bool, cache: Path
) -> Iterator[Found]:
    """Entries in the dictionary's order: the word, a colon, and its prose."""
    name = package.name.removeprefix("dict-")
    seen: set[str] = set()
    for number, entry in enumerate(dictd.entries(fetch(package, cache), name)):
        head, parts = read(entry)
        parts = [part for part in parts if not (part in seen or seen.add(part))]
        if max(map(len, parts), default=0) < SHORTEST or is_unwanted("\n".join([head, *parts])):
            continue
        group = prose.word_group(head.split(",")[0])
        for place, text in enumerate(prose.pieces([f"{head}: {parts[0]}", *parts[1:]])):
            yield prose.found(f"{name}/{number}/{place}", text, group=group, technical=technical)


ADAPTERS = (
    Adapter(
        name="gcide",
        title="definitions of an English dictionary",
        stages=("text", "omni"),
        licence=GCIDE.licence,
        find=partial(_find, GCIDE, gcide_entry, False),
        packages=(GCIDE,),
        version=2,
    ),
    Adapter(
        name="foldoc",
        title="a dictionary of computing",
        stages=("text", "omni"),
        licence=FOLDOC.licence,
        find=partial(_find, FOLDOC, foldoc_entry, True),
        packages=(FOLDOC,),
        version=2,
    ),
    Adapter(
        name="jargon",
        title="a dictionary of hackers' words",
        stages=("text", "omni"),
        licence=JARGON.licence,
        find=partial(_find, JARGON, jargon_entry, True),
        packages=(JARGON,),
        version=2,
    ),
)
