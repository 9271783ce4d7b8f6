"""Who is at work on a run: this process's identity as plain values, and whether another's is still there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def identity() -> dict[str, Any]:
    """pid, host, and since when the process runs: a pid alone is given away again after its process ends."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": _stat(os.getpid())[1]}


def is_alive(who: Mapping[str, Any]) -> bool | None:
    """Whether the process of an `identity` still runs; None for one of another host, or none at all."""
    pid = who.get("pid")
    if not isinstance(pid, int) or not 0 < pid < 1 << 31 or who.get("host") != socket.gethostname():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is there, and another user's.
    state, since = _stat(pid)
    # A zombie has ended; nobody has asked for its exit status yet.
    return state not in ("Z", "X") and (since is None or who.get("since") in (None, since))


def _stat(pid: int) -> tuple[str | None, int | None]:
    """State of a process and its start in clock ticks since boot, or Nones where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None, None
    # The 3rd field, and the 22nd; the 2nd is a name in parentheses, which may hold spaces.
    return fields[0], int(fields[19])
