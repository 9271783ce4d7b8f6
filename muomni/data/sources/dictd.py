"""Dictionaries of the DICT server: NAME.index, tab-separated, into NAME.dict.dz, which gzip reads.

Format: dictd(8) and dictzip(1); numbers are written in base 64 with the digits A-Z, a-z, 0-9, + and /.
"""

from __future__ import annotations

import gzip
import string
import zlib
from collections.abc import Iterator
from pathlib import Path

from muomni.data.sources.fetch import SourceError

_DIGITS = {c: n for n, c in enumerate(string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/")}


def number(text: str) -> int:
    """A number of the index. Raises SourceError for anything else."""
    value = 0
    for c in text:
        if c not in _DIGITS:
            raise SourceError(f"{text!r} is no number of a dictionary's index; expected base 64 digits.")
        value = 64 * value + _DIGITS[c]
    return value


def entries(folder: Path, name: str) -> Iterator[str]:
    """The entries of a dictionary somewhere under folder, each once, in the file's order; not those about itself.

    Raises SourceError when its files are missing or broken.
    """
    index = next(folder.rglob(f"{name}.index"), None)
    data = next(folder.rglob(f"{name}.dict.dz"), None)
    if index is None or data is None:
        raise SourceError(f"{folder}: no dictionary {name}; expected {name}.index and {name}.dict.dz.")
    try:
        text = gzip.decompress(data.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{data.name}: cannot be unpacked: {error}.") from None
    places: set[tuple[int, int]] = set()
    for line in index.read_text(encoding="utf-8").splitlines():
        word, _, place = line.partition("\t")
        offset, _, length = place.partition("\t")
        if not word.startswith("00-"):
            places.add((number(offset), number(length)))
    for offset, length in sorted(places):
        if offset + length > len(text):
            raise SourceError(f"{data.name}: shorter than its index says; fetch the package again.")
        yield text[offset : offset + length].decode("utf-8", "replace")
