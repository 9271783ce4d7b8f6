"""Public data by the packages and archives it comes in, one small adapter each."""

from __future__ import annotations

import importlib

from muomni.data.sources.adapter import Adapter
from muomni.errors import UserError

MODULES: tuple[str, ...] = (
    "asterisk",
    "books",
    "chitchat",
    "descriptions",
    "dictionaries",
    "emoji",
    "fortunes",
    "glosses",
    "iconify",
    "lines",
    "openclipart",
    "public_pictures",
    "public_speech",
    "public_texts",
    "queen",
    "sisu",
    "spoken",
    "synthesis",
)
"""The modules here that hold ADAPTERS, a tuple of Adapter."""

RECIPES: dict[str, tuple[str, ...]] = {
    "small": ("chitchat", "asterisk", "hibari", "flite", "spoken-questions", "emoji", "lines"),
    "full": (
        "chitchat", "sotu", "kjv", "moby-dick", "novels", "gcide", "wordnet", "packages", "fortunes", "foldoc",
        "jargon", "asterisk", "hibari-5h", "flite-4h", "spoken-questions", "emoji", "emoji-noto", "emoji-twemoji",
        "emoji-openmoji", "emoji-fluent-flat", "emoji-fluent", "game-icons", "openclipart", "lines-20k",
    ),
}  # fmt: skip
"""Sets that are prepared and opened by one name."""


def adapters() -> dict[str, Adapter]:
    """Every set that can be prepared, by name."""
    found = [a for name in MODULES for a in importlib.import_module(f"{__name__}.{name}").ADAPTERS]
    return {adapter.name: adapter for adapter in found}


def adapter(name: str) -> Adapter:
    """A set by name. Raises UserError when there is none."""
    known = adapters()
    if name not in known:
        raise UserError(f"data: no set is named {name!r}; `muomni data list` shows them.")
    return known[name]
