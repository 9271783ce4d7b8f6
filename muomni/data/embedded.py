"""The embedded data set: real recordings with transcripts, pictures with words, conversations.

It lies in the package (muomni/data/embedded/, about 10 MB) and needs no network. Where it comes from
and how to rebuild it: data/sources/, `muomni data embed`, ATTRIBUTION.md.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from muomni.data.image import to_array
from muomni.data.items import (
    TYPES,
    Conversation,
    Item,
    Kind,
    LineItem,
    PictureItem,
    Source,
    Split,
    read_item,
)
from muomni.data.media import MediaError, read_image
from muomni.data.shards import TarShard
from muomni.errors import UserError

FOLDER = Path(__file__).with_name("embedded")
PICTURE_SIDE = 128
"""Pixels a side of every picture of the set."""
_TARS: dict[Kind, tuple[str, str]] = {
    "speech": ("speech.tar", ".ogg"), "questions": ("questions.tar", ".ogg"), "pictures": ("pictures.tar", ".webp"),
}  # fmt: skip
"""Where the files of each kind are, and how their names end."""


class EmbeddedDataError(UserError, RuntimeError):
    """A file of the embedded set is missing or changed."""


@functools.cache
def _shard(name: str) -> TarShard:
    return TarShard(FOLDER / name)


@functools.cache
def _conversations() -> tuple[Conversation, ...]:
    # A byte that is not UTF-8 spoils its own item alone: read_text finds what stands for it.
    text = lzma.decompress((FOLDER / "text.jsonl.xz").read_bytes()).decode("utf-8", "surrogateescape")
    rows = map(json.loads, text.splitlines())
    return tuple(Conversation(**{**row, "turns": tuple(row["turns"])}) for row in rows)


class Embedded(Source):
    """The embedded set as a source; nothing is read before it is asked for."""

    def items(self, kind: Kind, split: Split) -> list[Item]:
        """The items of a kind in a split, in the set's order."""
        if kind == "conversations":
            return [item for item in _conversations() if item.split == split]
        if kind not in _TARS:
            return []
        records = [record for record in _shard(_TARS[kind][0]).records if record["split"] == split]
        return [read_item(kind, record) for record in records]

    def file(self, item: Item) -> bytes:
        """A clip's file (Ogg Opus) or a picture's (WebP, 128 x 128)."""
        name, suffix = next(_TARS[kind] for kind in _TARS if isinstance(item, TYPES[kind]))
        return _shard(name).read(item.id.replace("/", "_") + suffix)

    def picture(self, item: PictureItem | LineItem, *, side: int = PICTURE_SIDE) -> np.ndarray:
        """A picture as (3, side, side) uint8 RGB. Raises MediaError, also for one that is not stored as 128 x 128."""
        picture = read_image(self.file(item))
        if picture.size != (PICTURE_SIDE, PICTURE_SIDE):
            raise MediaError(f"{item.id}: {picture.width} x {picture.height} pixels; expected 128 x 128.")
        return to_array(picture, side)


SET = Embedded()
"""The embedded set."""


def manifest() -> dict[str, Any]:
    """Files with hashes, and sources with versions, licences and attributions."""
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def attribution() -> str:
    """The attribution text of the embedded data."""
    return (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")


def verify(folder: Path = FOLDER) -> int:
    """Check every file against the manifest's SHA-256; the number of files.

    Raises EmbeddedDataError naming the first file that is missing or differs.
    """
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    for name, expected in files.items():
        path = folder / name
        if not path.exists():
            raise EmbeddedDataError(f"{path}: missing; reinstall muomni or run `muomni data embed`.")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected["sha256"]:
            raise EmbeddedDataError(
                f"{path}: SHA-256 {found[:12]}..., expected {expected['sha256'][:12]}...; reinstall muomni."
            )
    return len(files)
