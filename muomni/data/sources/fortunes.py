"""Short sayings and jokes of fortune(6), one between lines of `%`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from muomni.data.sources import prose
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.chitchat import is_unwanted
from muomni.data.sources.fetch import Package, fetch
from muomni.data.splits import normalised

FORTUNES = Package(
    registry="debian",
    name="fortunes",
    version="1:1.99.1-7.3",
    sha256="41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5",
    n_bytes=848_988,
    licence="BSD-4-Clause-UC for the collection; quotations are their authors'",
    attribution="Ken Arnold, the Regents of the University of California, and the collectors of fortune-mod",
    gives="sayings, without those about groups of people, songs, pictures and other languages",
)
MINIMAL = Package(
    registry="debian",
    name="fortunes-min",
    version="1:1.99.1-7.3",
    sha256="9eed5b45064e41133dae0967cf3a17588ad77c014fcc7bf1527fa3ea48e44d07",
    n_bytes=56_492,
    licence=FORTUNES.licence,
    attribution=FORTUNES.attribution,
    gives="sayings, literature and riddles",
)
LEFT_OUT = ("ascii-art", "drugs", "ethnic", "men-women", "songs-poems", "translate-me", "zippy")
"""Files not taken: pictures, jokes about groups of people and drugs, whole songs, other languages, nonsense."""
TECHNICAL = ("computers", "debian", "knghtbrd", "linux", "linuxcookie", "perl")
SHORTEST = 30
"""Characters."""


def saying(text: str) -> str:
    """A saying with its lines joined where they are wrapped; speech, lists, verse and the author keep their own.

    A line that is indented, or ends before a new line's first word would fit, ends where it is.
    """
    text = re.sub(r".\x08", "", text.expandtabs(8))
    lines: list[str] = []
    joins = False
    for line in text.splitlines():
        plain = prose.plain(line)
        author = re.match(r"\s*--\s*\S", line)
        own = not plain or author or line.startswith("  ") or re.match(r"[A-Z<*(]\S{0,12}[:>)]\s", line)
        if lines and plain and ((joins and not own) or (lines[-1].startswith("-- ") and not author)):
            lines[-1] += ("" if re.search(r"\w-$", lines[-1]) else " ") + plain
        elif plain:
            lines.append(f"-- {plain.lstrip('- ')}" if author else plain)
        joins = len(line.rstrip()) > 55 and not author
    return "\n".join(lines)


def find(cache: Path) -> Iterator[Found]:
    """Each saying once; those with unwanted words, or with drawings in them, are left out."""
    seen: set[str] = set()
    for package in (MINIMAL, FORTUNES):
        for path in sorted(fetch(package, cache).rglob("games/fortunes/*")):
            if path.suffix or path.name in LEFT_OUT:
                continue
            sayings = re.split(
                r"^%\n?", path.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE
            )
            for number, raw in enumerate(sayings):
                text = saying(raw)
                letters = sum(c.isalpha() or c.isspace() for c in text)
                if (
                    len(text) < SHORTEST
                    or letters < 0.8 * len(text)
                    or is_unwanted(text)
                    or normalised(text) in seen
                ):
                    continue
                seen.add(normalised(text))
                for place, piece in enumerate(prose.pieces([text])):
                    yield prose.found(
                        f"fortunes/{path.name}/{number}/{place}",
                        piece,
                        group=f"fortunes {normalised(text)}",
                        technical=path.name in TECHNICAL,
                    )


ADAPTERS = (
    Adapter(
        name="fortunes",
        title="short sayings and jokes",
        stages=("text", "omni"),
        licence=FORTUNES.licence,
        find=find,
        packages=(MINIMAL, FORTUNES),
    ),
)
