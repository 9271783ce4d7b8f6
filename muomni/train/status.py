"""run.json while a stage trains: who is at work on it, and how it ended when it did not finish."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from muomni.alive import identity
from muomni.train import checkpoint


class Attended:
    """Writes run.json when the block begins, and again when an exception ends it: interrupted or failed, and why.

    Who finishes writes the last run.json itself; a process that is killed leaves its identity, and is not there.
    """

    def __init__(self, directory: Path, record: Mapping[str, Any], *, step: Callable[[], int]) -> None:
        """directory: RUN/<stage>; record: run.json at the start; step: gives the step that was reached."""
        self._path, self._step = directory / "run.json", step
        self._record = {**record, "state": "running", "started": round(time.time(), 1), **identity()}

    def __enter__(self) -> Attended:
        """Say who trains."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(self._path, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say how it ended; the exception goes on."""
        if error is None:
            return
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        lines = str(error).splitlines()
        why = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        ended = {**self._record, "state": state, "error": why, "step": self._step()}
        # On a full disk the reason it is full for is the exception that goes on.
        with contextlib.suppress(OSError):
            checkpoint.write_json(self._path, ended)
