"""Your own data as a set: a manifest (JSONL, CSV, TSV, Parquet) or a folder; docs/your-data.md shows each form.

Columns: audio,text   image,text   text   messages; others are optional (OPTIONAL).
"""

from __future__ import annotations

import csv
import difflib
import functools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from muomni.data.media import MAX_TEXT_BYTES, MediaError, read_bytes, read_text
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
MAX_PATH = 4_096
"""Characters of a path."""
MAX_CHARACTERS = 20_000
"""Of a piece of a long text file."""


class OwnDataError(UserError, ValueError):
    """A manifest or folder that cannot be understood."""


def own(name: str, path: Path, *, root: Path | None = None) -> Adapter:
    """A set of one's own.

    root: where prepared sets are kept; what lies there is no part of a folder.
    Raises OwnDataError when there is nothing at the path or its form is unknown.
    """
    if not path.exists():
        raise OwnDataError(f"{path}: is not there; give a folder or a manifest (jsonl, csv, tsv, parquet).")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise OwnDataError(f"data: {name!r} cannot name a set; use letters, digits and hyphens.")
    if not path.is_dir() and (not path.is_file() or path.suffix not in _READERS):
        raise OwnDataError(f"{path}: is no manifest; expected {', '.join(_READERS)}, or a folder.")
    path = path.resolve()
    if path.is_dir():
        find = functools.partial(_find_folder, path=path, name=name, root=root)
    else:
        find = functools.partial(_find_rows, path=path, name=name)
    return Adapter(
        name=name, title=f"own data from {path}",
        stages=("text", "audio", "vision", "codec", "vocoder", "talker", "omni"),
        licence="your own", find=find, version=_state(_files(path, root) if path.is_dir() else _named(path)),
    )  # fmt: skip


def _state(files: Iterable[Path]) -> int:
    """Changes with any name, size or time of change, so that changed data are prepared again."""
    state = 0
    for path in files:
        try:
            found = path.stat()
            said = f"{found.st_size} {found.st_mtime_ns}"
        except (OSError, ValueError):
            said = "absent"
        state = zlib.crc32(f"{path} {said}".encode("utf-8", "surrogatepass"), state)
    return state


def _named(manifest: Path) -> Iterator[Path]:
    """A manifest and the files that its rows name, as far as it can be read."""
    yield manifest
    try:
        for row in _READERS[manifest.suffix](manifest):
            yield from (
                manifest.parent / row[key] for key in ("audio", "image") if isinstance(row.get(key), str)
            )
            yield from (manifest.parent / one for one in _media(row.get("messages")))
    except UserError:
        # Preparing will say what is wrong.
        return


def _media(value: Any) -> Iterator[str]:
    """Every string of messages: among them the paths of their media."""
    if isinstance(value, str):
        yield value[:MAX_PATH]
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _media(one)


def _files(folder: Path, root: Path | None) -> list[Path]:
    """The files of a folder in order, without those below the root."""
    found: list[Path] = []
    for base, folders, names in os.walk(folder):
        folders[:] = [one for one in folders if root is None or Path(base, one) != root]
        found += [Path(base, name) for name in names]
    return sorted(found)


def _inside(base: Path, relative: str, where: str) -> Path:
    """A file below base. Raises OwnDataError for a path that leads out of it, also over a link."""
    try:
        path = (base / relative).resolve()
    except (ValueError, OSError) as error:
        raise MediaError(f"{where}: {relative!r} is no path ({error}).") from None
    if not path.is_relative_to(base):
        raise OwnDataError(f"{where}: {relative!r} leads out of {base}; copy the file there.")
    return path


def _refused(reason: str) -> bytes:
    """The payload of a row that cannot be used."""
    raise MediaError(reason)


def _find_rows(cache: Path, *, path: Path, name: str) -> Iterator[Found]:
    number = 0
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
        key = f"{number:07d}"
        try:
            _check_characters(given, where)
            yield _item(given, what, name=name, key=str(given.get("id", key)), base=path.parent, where=where)
        except MediaError as error:
            payload = functools.partial(_refused, str(error))
            yield Found(kind="texts", id=f"{name}/{key}", group=key, fields={}, payload=payload)
    if not number:
        raise OwnDataError(f"{path}: is empty; expected a row for each item.")


def _check_characters(row: dict[str, Any], where: str) -> None:
    """Raises MediaError for halves of characters, which no file can hold."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise MediaError(
            f"{where}: holds U+{half:04X}, half of a character; write the character itself."
        ) from None


def _item(row: dict[str, Any], what: str, *, name: str, key: str, base: Path, where: str) -> Found:
    """One row as an item."""
    common: dict[str, Any] = {"id": f"{name}/{key}", "split": row.get("split")}
    if what == "messages":
        return _dialogue(row["messages"], common, base, where)
    text = str(row["text"])
    if what == "text":
        return Found(kind="texts", group=normalised(text), fields={"text": text}, **common)
    file = _inside(base, str(row[what]), where)
    payload = functools.partial(read_bytes, file)
    if what == "audio":
        language = str(row.get("language", "en"))
        heard = _heard(text, language, where)
        fields = {"text": heard, "raw_text": text, "speaker": str(row.get("speaker", name)), "synthetic": False,
                  "language": language}  # fmt: skip
        return Found(kind="speech", group=heard, fields=fields, payload=payload, suffix=file.suffix, **common)
    tags = row.get("tags", [])
    tags = [tag.strip() for tag in tags.split(",")] if isinstance(tags, str) else tags
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise OwnDataError(
            f"{where}: tags: {tags!r}; expected words with commas between, or a list of words."
        )
    fields = {"label": text, "tags": tags, "group": str(row.get("group", ""))}
    return Found(
        kind="pictures", group=normalised(text), fields=fields, payload=payload, suffix=file.suffix, **common
    )


def _heard(text: str, language: str, where: str) -> str:
    """What is said, in words."""
    try:
        return spoken_form(text) if language == "en" else letters(text, language)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        why = str(error) or f"no numbers in language {language!r}"
        raise MediaError(f"{where}: its numbers cannot be put into words ({why}); write them out.") from None


def _dialogue(messages: Any, common: dict[str, Any], base: Path, where: str) -> Found:
    """Messages as a conversation, or as a dialogue when they hold pictures or recordings."""
    if isinstance(messages, str):
        messages = _json(messages, where)
    if not isinstance(messages, list) or len(messages) < 2:
        raise OwnDataError(f"{where}: messages: expected a list of two or more.")
    files: list[functools.partial[bytes]] = []
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
                files.append(functools.partial(read_bytes, _inside(base, one, where)))
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
        images, clips = (_list(message.get(key), key, where) for key in ("images", "audio"))
        return str(message.get("text") or ""), images, clips
    if isinstance(content, str):
        return content, [], []
    found: dict[str, list[str]] = {"text": [], "image": [], "image_url": [], "audio": []}
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in found:
            raise OwnDataError(f"{where}: a part of type {kind!r}; expected text, image, image_url or audio.")
        value = part.get(kind)
        value = value.get("url") if kind == "image_url" and isinstance(value, dict) else value
        if not isinstance(value, str):
            raise OwnDataError(f"{where}: a part of type {kind!r} holds {value!r}; expected a string.")
        found["image" if kind == "image_url" else kind].append(value)
    return "\n".join(found["text"]), found["image"], found["audio"]


def _list(value: Any, key: str, where: str) -> list[str]:
    """One path or several; none for nothing."""
    found = [value] if isinstance(value, str) else value or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise OwnDataError(f"{where}: {key}: {value!r}; expected a path or a list of paths.")
    return found


def _find_folder(cache: Path, *, path: Path, name: str, root: Path | None) -> Iterator[Found]:
    """Recordings and pictures with their words in a .txt beside, or pictures in folders of their names; texts."""
    for file in _files(path, root):
        relative, words = file.relative_to(path), file.with_suffix(".txt")
        where, key = str(file), relative.as_posix()
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
            row = {what: str(relative), "text": text}
            try:
                _check_characters({**row, "id": key}, where)
                yield _item(row, what, name=name, key=key, base=path, where=where)
            except MediaError as error:
                safe = ascii(key)[1:-1]
                payload = functools.partial(_refused, str(error))
                yield Found(kind="texts", id=f"{name}/{safe}", group=safe, fields={}, payload=payload)
        elif suffix in TEXTS and not any(file.with_suffix(s).exists() for s in AUDIO | IMAGES):
            for i, piece in enumerate(_pieces(_text(file))):
                # A whole work in one split.
                yield Found(kind="texts", id=f"{name}/{key}/{i:04d}", group=key, fields={"text": piece})


def _text(path: Path) -> str:
    """A text file. Raises OwnDataError when it is not UTF-8 or empty."""
    try:
        return read_text(read_bytes(path), name=str(path)).strip()
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
    """One object a line; empty lines are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_TEXT_BYTES + 1), b""), start=1):
            where = f"{path}, row {number}"
            if not line.strip():
                continue
            try:
                row = _json(read_text(line, name=where), where)
            except MediaError as error:
                raise OwnDataError(str(error)) from None
            if not isinstance(row, dict):
                raise OwnDataError(f'{where}: expected an object such as {{"text": ...}}.')
            yield row


def _table(path: Path, *, delimiter: str) -> Iterator[dict[str, Any]]:
    """The first line names the columns."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    raise OwnDataError(f"{path}, row {number}: has not {len(reader.fieldnames or ())} cells.")
                yield row
    except UnicodeDecodeError as error:
        raise OwnDataError(
            f"{path}, after row {number}: is not UTF-8 ({error.reason}); save it as UTF-8."
        ) from None
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
