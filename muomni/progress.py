"""Progress of long work on a terminal (a bar with time left) and without one (a few plain lines)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Update = Callable[[int, int, str], None]
"""Called as update(done, total, note)."""

PLAIN_SECONDS = 15.0


@contextmanager
def bar(label: str, console: Console) -> Iterator[Update]:
    """Show one piece of work; yields the update function. Without a terminal: a line every 15 seconds."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(label, total=None, note="")
            yield lambda done, total, note: progress.update(task, completed=done, total=total, note=note)
        return
    started = time.monotonic()
    last = started

    def plain(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < PLAIN_SECONDS:
            return
        last = now
        left = (now - started) / max(done, 1) * (total - done)
        console.print(
            f"{label:<10} {done}/{total}  {now - started:.0f} s, {left:.0f} s left  {note}", highlight=False
        )

    yield plain
