"""Drawings that people gave to the public domain, with titles and subjects: the Open Clip Art Library (Debian)."""

from __future__ import annotations

import functools
import html
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from muomni.data.media import MAX_PIXELS
from muomni.data.sources.adapter import Adapter, Found, LeftOutError
from muomni.data.sources.fetch import Package, fetch
from muomni.data.sources.svg import shrunk

_BY = "Open Clip Art Library, dedicated to the public domain by its authors"
DRAWINGS = Package(
    registry="debian",
    name="openclipart-svg",
    version="1:0.18+dfsg-19",
    sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    licence="public domain",
    attribution=_BY,
    gives="titles, subjects and descriptions",
    n_bytes=24_919_068,
)
PICTURES = Package(
    registry="debian",
    name="openclipart-png",
    version="1:0.18+dfsg-19",
    sha256="f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    licence="public domain",
    attribution=_BY,
    gives="the pictures, made smaller",
    n_bytes=130_910_028,
)
DROPPED = ("computer", "shapes/stars", "special", "unsorted")
"""Folders of user-interface parts, generated stars, gradients and patterns."""
MAX_TITLE_WORDS = 8
_TITLE = re.compile(r"<dc:title>(.*?)</dc:title>", re.DOTALL)
_DESCRIPTION = re.compile(r"<dc:description>(.*?)</dc:description>", re.DOTALL)
_SUBJECT = re.compile(r"<rdf:li>(.*?)</rdf:li>", re.DOTALL)


def clean(title: str) -> str:
    """A title as plain lower-case words: no numbers, file endings, or `by` its author; empty when nothing is left."""
    text = html.unescape(title).lower().replace("_", " ")
    text = re.sub(
        r"\.(svg|png)$|\bby\b.*|\(.*?\)|\bversion\b|\b(svg|clip ?art|drawing|icon|vector)\b", " ", text
    )
    words = re.sub(r"[^a-zà-ÿ' -]+", " ", text).replace("-", " ").split()
    return " ".join(word for word in words if len(word) > 1 or word in ("a", "i"))


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return " ".join(html.unescape(found.group(1)).split()) if found else ""


def _find(cache: Path) -> Iterator[Found]:
    drawings = next(fetch(DRAWINGS, cache).rglob("openclipart/svg"))
    pictures = next(fetch(PICTURES, cache).rglob("openclipart/png"))
    for path in sorted(drawings.rglob("*.svg")):
        place = path.relative_to(drawings).with_suffix("")
        image = pictures / place.with_suffix(".png")
        if str(place).startswith(DROPPED) or not image.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        label = clean(_first(_TITLE, text))
        if not label or len(label.split()) > MAX_TITLE_WORDS:
            continue
        subjects = [clean(subject) for subject in _SUBJECT.findall(text)]
        described = _first(_DESCRIPTION, text)
        yield Found(
            kind="pictures", id=f"openclipart/{place}", group=label, suffix=".webp",
            payload=functools.partial(_small, image, f"openclipart/{place}"),
            fields={
                "label": label, "tags": list(dict.fromkeys(s for s in subjects if s and s != label)),
                "group": place.parts[0].replace("_", " "), "style": "drawing",
                "captions": [described] if len(described.split()) > 3 and len(described) < 200 else [],
            },
        )  # fmt: skip


def _small(path: Path, name: str) -> bytes:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            n_pixels = picture.width * picture.height
    except Image.DecompressionBombError:
        n_pixels = MAX_PIXELS + 1
    if n_pixels > MAX_PIXELS:
        raise LeftOutError("larger than the gate lets pass")
    return shrunk(path.read_bytes(), name=name)


ADAPTERS: tuple[Adapter, ...] = (
    Adapter(
        name="openclipart", title="drawings with titles and subjects", stages=("vision", "omni"),
        licence="public domain", packages=(DRAWINGS, PICTURES), find=_find, version=2,
    ),
)  # fmt: skip
