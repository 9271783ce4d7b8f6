"""Real pictures with words: Noto Color Emoji with the labels and tags of emojibase."""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from muomni.data.media import MediaError
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import Package, fetch
from muomni.data.splits import split_of

FONT = Package(
    registry="debian",
    name="fonts-noto-color-emoji",
    version="2.042-0+deb12u1",
    n_bytes=9_893_872,
    sha256="a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
    licence="OFL-1.1",
    attribution="Noto Color Emoji, Copyright 2022 Google Inc.; Noto is a trademark of Google Inc.",
    gives="the drawings (pictures.tar), rendered on white and encoded as WebP",
)
WORDS = Package(
    registry="npm",
    name="emojibase-data",
    version="17.0.0",
    n_bytes=6_711_091,
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    licence="MIT",
    attribution="emojibase-data, Copyright (c) 2017-2019 Miles Johnson",
    gives="labels, tags and groups of the pictures (pictures.tar)",
)
GROUPS = (
    "smiley", "person", "component", "animal or plant", "food or drink", "place or travel", "activity", "object",
    "symbol", "flag",
)  # fmt: skip
"""Emojibase's group numbers as the words an answer uses."""
RENDER_SIZE = 109
"""The only size of the font's bitmaps."""
SIDE = 128
"""Pixels per side of a stored picture."""


# Code points that change who is drawn or which way it faces, not what it is: person, man, woman, joiner,
# colour selector, the two gender signs, right arrow.
_VARIANT = frozenset(("1F9D1", "1F468", "1F469", "200D", "FE0F", "2640", "2642", "27A1"))


def concept_of(hexcode: str) -> str:
    """What is drawn: equal for man, woman and person walking, whichever way they face."""
    return "-".join(code for code in hexcode.split("-") if code not in _VARIANT) or "person"


def render(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The emoji on white, scaled into SIDE x SIDE pixels; None when the font does not draw it."""
    canvas = Image.new("RGBA", (160, 160), (255, 255, 255, 255))
    ImageDraw.Draw(canvas).text((80, 80), emoji, font=font, embedded_color=True, anchor="mm")
    ink = canvas.convert("L").point([255 if value < 250 else 0 for value in range(256)])
    box = ink.getbbox()
    if box is None:
        return None
    drawn = canvas.crop(box).convert("RGB")
    drawn.thumbnail((SIDE - 8, SIDE - 8), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    picture.paste(drawn, ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2))
    return picture


def encode(picture: Image.Image) -> bytes:
    """A picture as WebP, about 2.5 kB."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=72, method=6)
    return buffer.getvalue()


def _plainness(record: dict[str, Any]) -> tuple[int, int]:
    words = re.findall(r"\w+", record["label"])
    return sum(word in ("man", "woman", "boy", "girl") for word in words), len(record["label"])


def entries(cache: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(emoji, concept, words) of every emoji with a group, skin tones and components left out.

    concept: the first label of those drawn alike but for who is drawn and which way it faces. words: the fields of an
    item: label, tags, group.
    """
    words = json.loads(next(fetch(WORDS, cache).rglob("en/data.json")).read_text(encoding="utf-8"))
    first_label: dict[str, str] = {}
    for entry in words:
        group = entry.get("group")
        if group is None or GROUPS[group] == "component":
            continue
        label = entry["label"].lower()
        concept = first_label.setdefault(concept_of(entry["hexcode"]), label)
        said = {
            "label": label,
            "tags": [tag.lower() for tag in entry.get("tags", [])],
            "group": GROUPS[group],
        }
        yield entry["emoji"], concept, {"id": f"emoji/{entry['hexcode']}", **said}


def items(cache: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Records and WebP bytes of every emoji that has a group and that the font draws.

    Of several emoji drawn alike (the flags of Norway and of Bouvet Island) only the one with the plainest label is
    kept: the others would be errors of whoever names it.
    """
    font = ImageFont.truetype(str(_font(cache)), RENDER_SIZE)
    drawn: dict[bytes, list[dict[str, Any]]] = {}
    for emoji, concept, words in entries(cache):
        picture = render(emoji, font)
        if picture is not None:
            record = {**words, "split": split_of("pictures", concept)}
            drawn.setdefault(encode(picture), []).append(record)
    return [(min(alike, key=_plainness), payload) for payload, alike in drawn.items()]


def _font(cache: Path) -> Path:
    return next(fetch(FONT, cache).rglob("NotoColorEmoji.ttf"))


def drawn(emoji: str, font: Path) -> bytes:
    """An emoji as WebP. Raises MediaError when the font does not draw it."""
    picture = render(emoji, ImageFont.truetype(str(font), RENDER_SIZE))
    if picture is None:
        raise MediaError(f"{emoji}: the font does not draw it.")
    return encode(picture)


def _find(cache: Path) -> Iterator[Found]:
    path = _font(cache)
    font = ImageFont.truetype(str(path), RENDER_SIZE)
    for emoji, concept, words in entries(cache):
        # Newer than the font: no bad item, it was never there.
        if render(emoji, font) is None:
            continue
        yield Found(
            kind="pictures", id=words["id"], group=concept, suffix=".webp",
            payload=functools.partial(drawn, emoji, path),
            fields={"label": words["label"], "tags": words["tags"], "group": words["group"], "style": "noto font"},
        )  # fmt: skip


ADAPTERS: tuple[Adapter, ...] = (
    Adapter(
        name="emoji", title="emoji with label, tags and group", stages=("vision", "omni"), licence=FONT.licence,
        packages=(FONT, WORDS), find=_find,
    ),
)  # fmt: skip
