"""Small files replaced whole: a kill or a full disk leaves the old one or the new one. Locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, content: str | bytes) -> None:
    """Write a file beside `path`, sync it and rename it there.

    Raises OSError with the path as its filename, also for a full disk; the old file is then as it was.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync(path: Path) -> None:
    """Have the system write a file's content, or a directory's names, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, text: str) -> None:
    """Add whole lines to a file in one write; a last line that was cut, by a full disk say, is ended first.

    Raises OSError with the path as its filename.
    """
    try:
        with path.open("ab") as file:
            if file.tell() and not _ends_a_line(path):
                text = f"\n{text}"
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file inside the block; the system lets go of it when the process ends, however it does.

    Raises BlockingIOError when another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
