"""What Debian's packages say about themselves: a release's index of descriptions, which is not a pinned package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from muomni import files
from muomni.data.sources import debian, prose
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import SourceError, run
from muomni.data.splits import normalised

_READ = "/usr/lib/apt/apt-helper"
"""Unpacks apt's lists whatever they are compressed with."""
_POINT = re.compile(r"\s*[*+o•-]\s+\S")
_SAYS_NOTHING = re.compile(r"^librust-|\b(?:transitional|dummy|metapackage|meta-package)\b", re.IGNORECASE)
"""Packages of one form each: crates of Rust, and those that only pull in others."""
SHORTEST = 60
"""Characters of description below which a package is left out."""


def index(cache: Path) -> Path:
    """The English descriptions of a release, fetched once into cache. Raises SourceError when that fails."""
    folder = cache / f"debian-descriptions-{debian.SUITE}"
    path = folder / "Translation-en"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        what = f"descriptions of {debian.SUITE}"
        run(
            ["apt-get", *debian.options(folder, component="main", descriptions=True), "update"],
            cwd=folder,
            what=what,
        )
        fetched = next((folder / "lists").glob("*_Translation-en*"), None)
        if fetched is None:
            raise SourceError(f"{what}: apt-get fetched none; expected Translation-en from {debian.MIRROR}.")
        files.replace(path, run([_READ, "cat-file", str(fetched.resolve())], cwd=folder, what=what))
    return path


def _long(lines: list[str]) -> list[str]:
    """The paragraphs of a description; points of a list are lines of theirs, and what is set apart is left out.

    The format is that of Debian's policy, section 5.6.13.
    """
    found: list[list[list[str]]] = [[[]]]
    for line in lines:
        text = line[1:].rstrip()
        paragraph = found[-1]
        if text in ("", "."):
            found.append([[]])
        elif _POINT.match(text):
            paragraph.append([text])
        elif not text.startswith("  ") or any(_POINT.match(part) for part in paragraph[-1][:1]):
            paragraph[-1].append(text)
    plain = (
        [line for part in paragraph if (line := prose.unwrapped("\n".join(part)))] for paragraph in found
    )
    return ["\n".join(part) for part in plain if part]


def find(cache: Path) -> Iterator[Found]:
    """Each package's name and descriptions; a paragraph that was there before is not given again.

    Packages whose long descriptions begin alike, as the parts of one program do, are in one split.
    """
    seen: set[str] = set()
    names: set[str] = set()
    for stanza in re.split(r"\n\n+", index(cache).read_text(encoding="utf-8", errors="replace")):
        match = re.search(
            r"^Package: (\S+)$.*?^Description-en: ([^\n]*)\n?(.*)", stanza, re.MULTILINE | re.DOTALL
        )
        # A package of several versions has one description for each.
        if match is None or match[1] in names or _SAYS_NOTHING.search(f"{match[1]}: {match[2]}"):
            continue
        name, short, rest = match.groups()
        names.add(name)
        parts = _long(rest.splitlines())
        fresh = [part for part in parts if not (part in seen or seen.add(part))]
        if sum(map(len, fresh)) >= SHORTEST:
            group = f"packages {normalised(parts[0])}"
            said = [f"{name}: {prose.plain(short)}", *fresh]
            for number, text in enumerate(prose.pieces(said)):
                yield prose.found(f"packages/{name}/{number}", text, group=group, technical=True)


ADAPTERS = (
    Adapter(
        name="packages",
        title=f"descriptions of Debian's packages ({debian.SUITE})",
        stages=("text", "omni"),
        licence="each under its package's licence",
        find=find,
    ),
)
