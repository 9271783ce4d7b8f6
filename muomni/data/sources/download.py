"""A file from an address, gone on with where a broken download stopped; and what a user must put there oneself."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from muomni.errors import UserError

BLOCK = 2**20
TIMEOUT = 60.0
"""Seconds without a byte after which a download is given up; the next call goes on."""

Progress = Callable[[int, int], None]
"""Called as progress(bytes so far, bytes in all or 0)."""


class DownloadError(UserError, RuntimeError):
    """Something cannot be downloaded, or is not there and cannot be."""


def download(address: str, target: Path, *, progress: Progress = lambda done, total: None) -> Path:
    """Download into target, by way of a file beside it from which a broken download goes on (HTTP Range).

    Raises DownloadError when the server cannot be reached, refuses, or stops early.
    """
    partial = target.with_name(f"{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    there = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            # A server that knows no ranges sends the whole file with 200.
            resumed = answer.status == 206
            done = there if resumed else 0
            length = int(answer.headers.get("Content-Length") or 0)
            total = done + length if length else 0
            with partial.open("ab" if resumed else "wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
                    done += len(block)
                    progress(done, total)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not there:
            raise DownloadError(
                f"{address}: the server says {error.code} {error.reason}; try again later."
            ) from None
        # Nothing is left to send.
        total = done = there
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"{address}: {reason}; the next call goes on from {_size(partial)} bytes."
        ) from None
    if total and done < total:
        raise DownloadError(
            f"{address}: stopped at {done} of {total} bytes; the next call goes on from there."
        )
    partial.rename(target)
    return target


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def digest(path: Path) -> str:
    """SHA-256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def given(cache: Path, name: str, *, what: str, origin: str) -> Path:
    """A folder that a user must fill, since its terms forbid that a program does: cache/given/name.

    Raises DownloadError saying what belongs there, and where it is to be had.
    """
    folder = cache / "given" / name
    if not folder.is_dir() or not any(folder.iterdir()):
        raise DownloadError(
            f"data: {name} cannot be downloaded for you; unpack {what} from {origin} into {folder}."
        )
    return folder
