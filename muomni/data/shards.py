"""Random access into an uncompressed tar of small files."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any


class TarShard:
    """A tar whose first member is items.jsonl; members are read by name without unpacking.

    Raises FileNotFoundError when the tar is missing and tarfile.TarError when it is not a tar.
    """

    def __init__(self, path: Path) -> None:
        """Read the index (names and offsets); no member's content but items.jsonl."""
        self.path = path
        with tarfile.open(path, "r:") as tar:
            self._spans = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
        # A byte that is not UTF-8 spoils its own record alone: media.read_text finds what stands for it.
        index = self.read("items.jsonl").decode("utf-8", "surrogateescape")
        self.records: list[dict[str, Any]] = [json.loads(line) for line in index.splitlines()]

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises KeyError for a name the tar does not hold."""
        offset, size = self._spans[name]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
