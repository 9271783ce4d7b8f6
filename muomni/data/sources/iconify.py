"""Emoji in five styles and four thousand game icons, as Iconify's npm packages hold them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muomni.data.sources import emoji
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import Package, fetch
from muomni.data.sources.svg import rasterise


def _package(name: str, version: str, sha256: str, n_bytes: int, licence: str, attribution: str) -> Package:
    return Package(
        registry="npm", name=f"@iconify-json/{name}", version=version, sha256=sha256, licence=licence, n_bytes=n_bytes,
        attribution=attribution, gives="the drawings, rasterised",
    )  # fmt: skip


NOTO = _package(
    "noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", 3_102_958,
    "Apache-2.0", "Noto Emoji, Google Inc. (github.com/googlefonts/noto-emoji)",
)  # fmt: skip
TWEMOJI = _package(
    "twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", 1_555_888,
    "CC-BY-4.0", "Twemoji, Twitter and contributors (github.com/jdecked/twemoji)",
)  # fmt: skip
OPENMOJI = _package(
    "openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5", 1_264_633,
    "CC-BY-SA-4.0", "OpenMoji, HfG Schwaebisch Gmuend (openmoji.org)",
)  # fmt: skip
FLUENT_FLAT = _package(
    "fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", 1_172_438,
    "MIT", "Fluent Emoji, Copyright (c) Microsoft Corporation",
)  # fmt: skip
FLUENT = _package(
    "fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b", 14_323_330,
    "MIT", "Fluent Emoji, Copyright (c) Microsoft Corporation",
)  # fmt: skip
GAME_ICONS = _package(
    "game-icons", "1.2.4", "f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4", 2_739_244,
    "CC-BY-3.0", "Game-icons.net, Lorc, Delapouite and contributors (game-icons.net)",
)  # fmt: skip

_NUMBERED = re.compile(r"\d")


def _json(package: Package, name: str, cache: Path) -> dict[str, Any]:
    return json.loads(next(fetch(package, cache).rglob(name)).read_text(encoding="utf-8"))


def _svg(icons: dict[str, Any], name: str) -> str:
    """A whole document of one icon; black where its colour is the text's."""
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    body = icon["body"].replace("currentColor", "#000")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def _find_emoji(cache: Path, *, package: Package, characters: Package, style: str) -> Iterator[Found]:
    """Every emoji the style draws; characters: the package whose names stand beside code points."""
    icons = _json(package, "icons.json", cache)
    names = _json(characters, "chars.json", cache)
    for symbol, concept, words in emoji.entries(cache):
        points = [f"{ord(c):x}" for c in symbol]
        # Iconify leaves out the colour selector, or not.
        keys = ("-".join(points), "-".join(p for p in points if p != "fe0f"))
        name = next((names[key] for key in keys if names.get(key) in icons["icons"]), None)
        if name is not None:
            yield Found(
                kind="pictures", id=f"emoji-{style}/{words['id'].removeprefix('emoji/')}", group=concept,
                suffix=".webp",
                payload=functools.partial(rasterise, _svg(icons, name), name=f"emoji-{style}/{name}"),
                fields={"label": words["label"], "tags": words["tags"], "group": words["group"], "style": style},
            )  # fmt: skip


def _find_icons(cache: Path) -> Iterator[Found]:
    icons = _json(GAME_ICONS, "icons.json", cache)
    for name, icon in icons["icons"].items():
        label = name.replace("-", " ")
        # A hidden icon is an alias of an older name; numbered ones are variants nobody can tell apart.
        if icon.get("hidden") or _NUMBERED.search(label):
            continue
        yield Found(
            kind="pictures", id=f"game-icons/{name}", group=label, suffix=".webp",
            payload=functools.partial(rasterise, _svg(icons, name), name=f"game-icons/{name}"),
            fields={"label": label, "tags": [], "group": "icon", "style": "icon"},
        )  # fmt: skip


def _emoji(style: str, package: Package, characters: Package | None = None) -> Adapter:
    names = characters or package
    return Adapter(
        name=f"emoji-{style}", title=f"emoji in the style {style}", stages=("vision", "omni"), licence=package.licence,
        packages=tuple(dict.fromkeys((package, names, emoji.WORDS))),
        find=functools.partial(_find_emoji, package=package, characters=names, style=style),
    )  # fmt: skip


ADAPTERS: tuple[Adapter, ...] = (
    _emoji("noto", NOTO),
    _emoji("twemoji", TWEMOJI),
    _emoji("openmoji", OPENMOJI),
    _emoji("fluent-flat", FLUENT_FLAT),
    _emoji("fluent", FLUENT, FLUENT_FLAT),
    Adapter(
        name="game-icons", title="black icons with their names", stages=("vision", "omni"), licence=GAME_ICONS.licence,
        packages=(GAME_ICONS,), find=_find_icons,
    ),
)  # fmt: skip
