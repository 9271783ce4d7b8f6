"""Packages put into a cache by a test, in their own formats, and what an adapter finds in them."""

import gzip
from collections.abc import Mapping
from pathlib import Path

from muomni.data.items import read_item
from muomni.data.sources import adapters, fetch
from muomni.data.sources.adapter import Found
from muomni.data.sources.fetch import Package


def place(package: Package, cache: Path, files: Mapping[str, bytes | str]) -> None:
    """Put a package's files into the cache, as after a download."""
    folder = fetch._folder(package, cache)
    (folder / "archive").mkdir(parents=True)
    (folder / "archive" / "package").write_text(package.sha256)
    for name, content in files.items():
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def found(name: str, cache: Path) -> list[Found]:
    """A set's items, each of which is one by its kind."""
    items = list(adapters()[name].find(cache))
    for one in items:
        length = {"n_samples": 1} if one.kind in ("speech", "questions") else {}
        read_item(one.kind, {**one.fields, "id": one.id, "split": "train", **length})
    assert len({one.id for one in items}) == len(items)
    assert all(one.id.startswith(f"{name}/") for one in items)
    return items


def texts(name: str, cache: Path) -> list[str]:
    """The texts of a set that has nothing else."""
    return [one.fields["text"] for one in found(name, cache)]


def base64(value: int) -> str:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return digits[value] if value < 64 else base64(value // 64) + digits[value % 64]


def dictionary(name: str, entries: dict[str, str]) -> dict[str, bytes | str]:
    """A dictionary of the DICT server: entries by their words, several with commas between."""
    data, index = b"", []
    for words, entry in entries.items():
        index += [f"{word}\t{base64(len(data))}\t{base64(len(entry.encode()))}" for word in words.split(",")]
        data += entry.encode()
    return {f"{name}.dict.dz": gzip.compress(data), f"{name}.index": "\n".join(sorted(index)) + "\n"}
