"""Your own data as a set: a manifest (JSONL, CSV, TSV, Parquet) or a folder; docs/your-data.md shows each form.

Columns: audio,text   image,text   text   messages; others are optional (OPTIONAL).
"""

from __future__ import annotations

import csv
import difflib
import functools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from muomni.data.media import MediaError, read_text
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.asterisk import letters, spoken_form
from muomni.data.sources.fetch import build_tool
from muomni.data.splits import normalised
from muomni.errors import UserError

AUDIO = frozenset((".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"))
IMAGES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"))
TEXTS = frozenset((".txt", ".md"))
OPTIONAL: dict[str, tuple[str, ...]] = {
    "audio": ("speaker", "language", "id", "split"),
    "image": ("tags", "group", "id", "split"),
    "text": ("id", "split"),
    "messages": ("id", "split"),
}
"""Columns that a row may have besides, by the column that says what it is."""
ALL = ("audio", "image", "text", "messages", "speaker", "language", "tags", "group", "id", "split")
MAX_CHARACTERS = 20_000
"""Of a piece of a long text file."""


class OwnDataError(UserError, ValueError):
    """A manifest or folder that cannot be understood."""


def own(name: str, path: Path) -> Adapter:
    """A set of one's own. Raises OwnDataError when there is nothing at the path or its form is unknown."""
    if not path.exists():
        raise OwnDataError(f"{path}: is not there; give a folder or a manifest (jsonl, csv, tsv, parquet).")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise OwnDataError(f"data: {name!r} cannot name a set; use letters, digits and hyphens.")
    if path.is_file() and path.suffix not in _READERS:
        raise OwnDataError(f"{path}: is no manifest; expected {', '.join(_READERS)}, or a folder.")
    find = _find_folder if path.is_dir() else _find_rows
    return Adapter(
        name=name, title=f"own data from {path}", stages=("text", "audio", "vision", "codec", "talker", "omni"),
        licence="your own", find=functools.partial(find, path=path.resolve(), name=name), version=_state(path),
    )  # fmt: skip


def _state(path: Path) -> int:
    """Changes with any name, size or time of change, so that a changed folder is prepared again."""
    files = sorted(p for p in (path if path.is_dir() else path.parent).rglob("*") if p.is_file())
    listed = "\n".join(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)
    return zlib.crc32(listed.encode())


def _inside(base: Path, relative: str, where: str) -> Path:
    """A file below base. Raises OwnDataError for a path that leads out of it, also over a link."""
    path = (base / relative).resolve()
    if not path.is_relative_to(base):
        raise OwnDataError(f"{where}: {relative!r} leads out of {base}; copy the file there.")
    return path


def _file(path: Path, shown: str) -> bytes:
    """A file's bytes, in a worker. Raises MediaError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{shown}: cannot be read ({error.strerror}).") from None


def _find_rows(cache: Path, *, path: Path, name: str) -> Iterator[Found]:
    for number, row in enumerate(_READERS[path.suffix](path), start=1):
        where = f"{path}, row {number}"
        given = {key: value for key, value in row.items() if value not in (None, "")}
        wrong = sorted(set(given) - set(ALL))
        if wrong:
            close = difflib.get_close_matches(wrong[0], ALL, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(ALL)}."
            raise OwnDataError(f"{where}: {wrong[0]!r} is no column; {hint}")
        what = next((key for key in ("messages", "audio", "image", "text") if key in given), None)
        if what is None:
            raise OwnDataError(
                f"{where}: holds nothing to learn from; expected audio, image, text or messages."
            )
        stray = sorted(
            set(given) - {what, *OPTIONAL[what]} - ({"text"} if what in ("audio", "image") else set())
        )
        if stray:
            raise OwnDataError(f"{where}: {stray[0]!r} does not go with {what!r}; leave it out.")
        if what in ("audio", "image") and "text" not in given:
            raise OwnDataError(f"{where}: {what} without text; give what is said, or what is shown.")
        if given.get("split", "train") not in ("train", "validation", "test"):
            raise OwnDataError(f"{where}: split {given['split']!r}; expected train, validation or test.")
        yield _item(
            given, what, name=name, key=str(given.get("id", f"{number:07d}")), base=path.parent, where=where
        )


def _item(row: dict[str, Any], what: str, *, name: str, key: str, base: Path, where: str) -> Found:
    """One row as an item."""
    common: dict[str, Any] = {"id": f"{name}/{key}", "split": row.get("split")}
    if what == "messages":
        return _dialogue(row["messages"], common, base, where)
    text = str(row["text"])
    if what == "text":
        return Found(kind="texts", group=normalised(text), fields={"text": text}, **common)
    file = _inside(base, str(row[what]), where)
    payload = functools.partial(_file, file, f"{where}: {row[what]}")
    if what == "audio":
        language = str(row.get("language", "en"))
        heard = spoken_form(text) if language == "en" else letters(text, language)
        fields = {"text": heard, "raw_text": text, "speaker": str(row.get("speaker", name)), "synthetic": False,
                  "language": language}  # fmt: skip
        return Found(kind="speech", group=heard, fields=fields, payload=payload, suffix=file.suffix, **common)
    tags = row.get("tags", [])
    tags = [tag.strip() for tag in tags.split(",")] if isinstance(tags, str) else [str(tag) for tag in tags]
    fields = {"label": text, "tags": tags, "group": str(row.get("group", ""))}
    return Found(
        kind="pictures", group=normalised(text), fields=fields, payload=payload, suffix=file.suffix, **common
    )


def _dialogue(messages: Any, common: dict[str, Any], base: Path, where: str) -> Found:
    """Messages as a conversation, or as a dialogue when they hold pictures or recordings."""
    if isinstance(messages, str):
        messages = _json(messages, where)
    if not isinstance(messages, list) or len(messages) < 2:
        raise OwnDataError(f"{where}: messages: expected a list of two or more.")
    files: list[bytes] = []
    turns: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role != ("user", "assistant")[i % 2]:
            raise OwnDataError(
                f"{where}: message {i + 1} is by {role!r}; expected user and assistant in turn."
            )
        text, images, clips = _parts(message, where)
        places: list[list[int]] = [[], []]
        for kind, paths in enumerate((images, clips)):
            for one in paths:
                places[kind].append(len(files))
                files.append(_file(_inside(base, one, where), f"{where}: {one}"))
        if role == "assistant" and (images or clips or not text):
            raise OwnDataError(f"{where}: message {i + 1}: an assistant answers with text and nothing else.")
        turns.append({"role": role, "text": text, "images": places[0], "clips": places[1]})
    said = "\n".join(turn["text"] for turn in turns)
    if files:
        return Found(
            kind="dialogues", group=normalised(said), fields={"messages": turns}, files=tuple(files), **common
        )
    return Found(
        kind="conversations",
        group=normalised(said),
        fields={"turns": [turn["text"] for turn in turns]},
        **common,
    )


def _parts(message: dict[str, Any], where: str) -> tuple[str, list[str], list[str]]:
    """Text, pictures and recordings of a message, in either form."""
    content = message.get("content")
    if content is None:
        images, clips = (message.get(key, []) for key in ("images", "audio"))
        return str(message.get("text", "")), _list(images), _list(clips)
    if isinstance(content, str):
        return content, [], []
    texts, images, clips = [], [], []
    for part in content:
        kind = part.get("type")
        if kind == "text":
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            value = part[kind]
            images.append(value["url"] if isinstance(value, dict) else value)
        elif kind == "audio":
            clips.append(part["audio"])
        else:
            raise OwnDataError(f"{where}: a part of type {kind!r}; expected text, image, image_url or audio.")
    return "\n".join(texts), images, clips


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _find_folder(cache: Path, *, path: Path, name: str) -> Iterator[Found]:
    """Recordings and pictures with their words in a .txt beside, or pictures in folders of their names; texts."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        relative, words = file.relative_to(path), file.with_suffix(".txt")
        where, key = str(file), relative.with_suffix("").as_posix()
        _inside(path, str(relative), where)
        suffix = file.suffix.lower()
        if suffix in AUDIO | IMAGES:
            if words.is_file():
                text = _text(words)
            elif suffix in IMAGES and len(relative.parts) > 1:
                text = relative.parts[-2].replace("_", " ").replace("-", " ")
            else:
                raise OwnDataError(f"{file}: has no words; put them into {words.name} beside it.")
            what = "audio" if suffix in AUDIO else "image"
            yield _item({what: str(relative), "text": text}, what, name=name, key=key, base=path, where=where)
        elif suffix in TEXTS and not any(file.with_suffix(s).exists() for s in AUDIO | IMAGES):
            for i, piece in enumerate(_pieces(_text(file))):
                # A whole work in one split.
                yield Found(kind="texts", id=f"{name}/{key}/{i:04d}", group=key, fields={"text": piece})


def _text(path: Path) -> str:
    """A text file. Raises OwnDataError when it is not UTF-8 or empty."""
    try:
        return read_text(path.read_bytes(), name=str(path)).strip()
    except MediaError as error:
        raise OwnDataError(str(error)) from None


def _pieces(text: str) -> Iterator[str]:
    """Whole paragraphs, together at most MAX_CHARACTERS where none is longer."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > MAX_CHARACTERS:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece.strip():
        yield piece


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise OwnDataError(f"{where}: is not JSON ({error}).") from None


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    lines = _text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        row = _json(line, f"{path}, row {number}")
        if not isinstance(row, dict):
            raise OwnDataError(f'{path}, row {number}: expected an object such as {{"text": ...}}.')
        yield row


def _table(path: Path, *, delimiter: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True), delimiter=delimiter, strict=True)
    number = 0
    try:
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise OwnDataError(f"{path}, row {number}: has not {len(reader.fieldnames or ())} cells.")
            yield row
    except csv.Error as error:
        raise OwnDataError(
            f"{path}, row {number + 1}: {error}; quote cells that hold {delimiter!r}."
        ) from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    reader = build_tool("pyarrow.parquet").ParquetFile(path)
    for batch in reader.iter_batches(batch_size=1_024):
        yield from batch.to_pylist()


_READERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".csv": functools.partial(_table, delimiter=","),
    ".tsv": functools.partial(_table, delimiter="\t"),
    ".parquet": _parquet,
}
