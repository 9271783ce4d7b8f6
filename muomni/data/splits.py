"""Which split an item belongs to, and what marks its near duplicates: by hash, the same in every set."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
from PIL import Image

from muomni.data.items import Kind, Split

_SHARES: dict[Kind, int] = {"pictures": 10}
"""One part in so many is test and one validation; 20 where not said. Concepts are few."""


def split_of(kind: Kind, group: str) -> Split:
    """The split of a normalised text, a concept, or a conversation's id."""
    share = zlib.crc32(group.encode()) % _SHARES.get(kind, 20)
    return "test" if share == 0 else "validation" if share == 1 else "train"


def normalised(text: str) -> str:
    """Lower-case letters and digits of any script, in words with single spaces between: equal for near duplicates."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold().replace("'", "")).split())


def text_fingerprint(text: str) -> int:
    """64 bits of the normalised text's SHA-256."""
    return int.from_bytes(hashlib.sha256(normalised(text).encode()).digest()[:8], "little")


def picture_fingerprint(picture: Image.Image) -> int:
    """64 bits that survive scaling and re-encoding: whether each cell of an 8 x 9 grid is brighter than its left one.

    The difference hash of Krawetz ("Kind of Like That", 2013).
    """
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")
