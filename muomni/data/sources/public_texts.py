"""Text corpora of the Hugging Face hub: TinyStories and FineWeb-Edu, up to an amount."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import Package
from muomni.data.sources.hub import parquet_rows
from muomni.data.splits import normalised


def _find(cache: Path, *, name: str, package: Package, under: str, most: int) -> Iterator[Found]:
    """Texts until `most` characters are reached; each once."""
    seen: set[int] = set()
    size = 0
    for number, row in enumerate(parquet_rows(package, cache, columns=("text",), under=under)):
        text = (row["text"] or "").strip()
        key = hash(normalised(text))
        if not text or key in seen:
            continue
        seen.add(key)
        size += len(text)
        yield Found(
            kind="texts", id=f"{name}/{number:08d}", group=normalised(text)[:200], fields={"text": text}
        )
        if size > most:
            return


def _adapter(name: str, title: str, licence: str, repository: str, under: str, most: int) -> Adapter:
    package = Package(
        registry="hub", name=repository, version="", sha256="", licence=licence, attribution=repository,
        gives=f"texts below {under}, up to {most:,} characters",
    )  # fmt: skip
    return Adapter(
        name=name, title=title, stages=("text", "omni"), licence=licence, packages=(package,),
        find=functools.partial(_find, name=name, package=package, under=under, most=most),
    )  # fmt: skip


ADAPTERS: tuple[Adapter, ...] = (
    _adapter(
        "tinystories", "short stories in plain words, 200 MB of them", "CDLA-Sharing-1.0", "roneneldan/TinyStories",
        "data/train", 200_000_000,
    ),
    _adapter(
        "fineweb-edu", "educational pages of the web, 1 GB of them", "ODC-By-1.0", "HuggingFaceFW/fineweb-edu",
        "sample/10BT/", 1_000_000_000,
    ),
)  # fmt: skip
