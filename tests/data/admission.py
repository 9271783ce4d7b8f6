"""Reads each case of bad media in a process of its own and tells what came of it: `python admission.py FOLDER`.

One line of JSON a case: kind, case, path, outcome ("MediaError", "accepted", or what ended the process), reason,
CPU seconds, growth of peak memory in bytes. A case is made in another process than the one that reads it, so that
memory it freed cannot hide what reading takes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bad_pictures
import bad_recordings
import bad_texts
import media_files

from muomni.data.media import MediaError, read_audio, read_image, read_text

PLACES = ("missing", "folder", "pipe", "socket", "endless device", "null device", "broken link", "circle", "long name",
          "NUL in the name", "inside a file", "1 GiB", "two\nlines", "nameless")  # fmt: skip
"""Paths that are no file to read."""
HANG_SECONDS = 60


def place(name: str, folder: Path) -> str:
    """Make the path of this name. Returns it."""
    path = folder / name.replace(" ", "_")
    match name:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            # The name of a socket is at most 107 bytes: bound from within its folder.
            os.chdir(folder)
            socket.socket(socket.AF_UNIX).bind("socket")
        case "endless device":
            return "/dev/zero"
        case "null device":
            return "/dev/null"
        case "broken link":
            path.symlink_to("nowhere")
        case "circle":
            path.symlink_to(path)
        case "long name":
            return str(folder / ("x" * 5_000))
        case "NUL in the name":
            return str(folder / "a\0b")
        case "inside a file":
            (folder / "file").write_bytes(b"x")
            return str(folder / "file" / "x.wav")
        case "1 GiB":
            with path.open("wb") as file:
                file.truncate(2**30)
        case "nameless":
            return ""
    return str(path)


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What work gives in a process of its own, or {"outcome": the signal that ended it}."""
    theirs, ours = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(HANG_SECONDS)
        answer = work()
        os.write(ours, json.dumps(answer).encode())
        os._exit(0)
    os.close(ours)
    with os.fdopen(theirs, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(said) if said else {"outcome": f"ended with status {status}"}


def memory(which: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1_024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def measured(read: Callable[[], object]) -> dict[str, Any]:
    """Outcome and price of one call."""
    before, started = memory("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
    outcome, reason = "accepted", ""
    try:
        read()
    except MediaError as error:
        outcome, reason = "MediaError", str(error)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    seconds = ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime
    return {"outcome": outcome, "reason": reason, "seconds": seconds, "growth": memory("VmHWM") - before}


def from_file(read: Callable[[str], object], make: Callable[[], bytes] | None, path: str) -> dict[str, Any]:
    """A file made in one process and read in another."""
    if make:
        apart(lambda: {"size": Path(path).write_bytes(make())})
    answer = apart(lambda: measured(lambda: read(path)))
    if make:
        Path(path).unlink()
    return answer


def answers(folder: Path) -> Iterator[dict[str, Any]]:
    """Every case of every kind."""
    # Plugins and tables are loaded once by each process that reads: not part of what a case costs.
    for good in media_files.good_recordings().values():
        read_audio(good)
    for good in media_files.good_pictures().values():
        read_image(good)
    readers = (("recording", read_audio, bad_recordings.CASES), ("picture", read_image, bad_pictures.CASES))
    for kind, read, cases in readers:
        (folder / kind).mkdir()
        for case in PLACES:
            path = place(case, folder / kind)
            yield {"kind": kind, "case": case, "path": path, **from_file(read, None, path)}
        for number, (case, (_, make)) in enumerate(cases.items()):
            path = str(folder / kind / f"{number} b.x")
            yield {"kind": kind, "case": case, "path": path, **from_file(read, make, path)}
    for case, (_, text) in bad_texts.CASES.items():
        answer = apart(lambda text=text, case=case: measured(lambda: read_text(text, name=f"a/{case}.txt")))
        yield {"kind": "text", "case": case, "path": f"a/{case}.txt", **answer}


if __name__ == "__main__":
    for line in answers(Path(sys.argv[1])):
        print(json.dumps(line), flush=True)
