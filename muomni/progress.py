"""Progress of long work on a terminal (a bar with time left) and without one (a few plain lines)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Update = Callable[[int, int, str], None]
"""Called as update(done, total, note); total 0 when it is not known."""
Row = Mapping[str, Any]
"""The last row of metrics.jsonl: loss/<term>, lr, tokens_per_second, mfu, fill_rate, memory_mib; any may be missing."""
TrainingUpdate = Callable[[int, int, Row], None]
"""Called as update(step, steps, row)."""

PLAIN_SECONDS = 15.0


@contextmanager
def bar(label: str, console: Console) -> Iterator[Update]:
    """Show one piece of work; yields the update function. Without a terminal: a line every 15 seconds."""
    with _shown(label, console) as update:
        yield lambda done, total, note: update(done, total, [note])


@contextmanager
def training(stage: str, console: Console) -> Iterator[TrainingUpdate]:
    """Show a stage's training: step, time left, speed, MFU, fill, memory, learning rate, losses.

    On a terminal two lines that stay in place, without one a line every 15 seconds and at the end.
    """
    with _shown(stage, console) as update:
        yield lambda step, steps, row: update(step, steps, [speed(row), losses(row)])


def speed(row: Row) -> str:
    """Tokens/s, MFU, fill, memory and learning rate of a row, those it has."""
    said = []
    if (tokens := row.get("tokens_per_second")) is not None:
        said.append(f"{count(tokens)} tokens/s")
    for key, name in (("mfu", "MFU"), ("fill_rate", "fill")):
        if (share := row.get(key)) is not None:
            said.append(f"{name} {share:.1%}")
    if (mib := row.get("memory_mib")) is not None:
        said.append(f"{mib / 1024:.2f} GiB" if mib >= 1024 else f"{mib:.0f} MiB")
    if (lr := row.get("lr")) is not None:
        said.append(f"lr {lr:.2e}")
    return "  ".join(said)


def losses(row: Row) -> str:
    """The loss terms of a row that are not zero."""
    terms = {k.removeprefix("loss/"): v for k, v in row.items() if k.startswith("loss/")}
    return "  ".join(f"{name} {value:.3f}" for name, value in terms.items() if value)


def count(number: float) -> str:
    """A number with a k or M: 812, 12.3k, 1.20M."""
    if number >= 1e6:
        return f"{number / 1e6:.2f}M"
    return f"{number / 1e3:.1f}k" if number >= 1e3 else f"{number:.0f}"


def clock(seconds: float) -> str:
    """Seconds as 48 s, 3:05 or 2:03:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"


@contextmanager
def _shown(label: str, console: Console) -> Iterator[Callable[[int, int, list[str]], None]]:
    """Yields update(done, total, lines about it)."""
    if not console.is_terminal:
        yield _plain(label, console)
        return
    progress = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    task = progress.add_task(label, total=None)
    below = Text()
    with Live(Group(progress, below), console=console, refresh_per_second=5):

        def update(done: int, total: int, lines: list[str]) -> None:
            progress.update(task, completed=done, total=total or None)
            below.plain = "\n".join(f"{'':<11}{line}" for line in lines if line)

        yield update


def _plain(label: str, console: Console) -> Callable[[int, int, list[str]], None]:
    started = last = time.monotonic()
    first: int | None = None

    def update(done: int, total: int, lines: list[str]) -> None:
        nonlocal last, first
        now = time.monotonic()
        # A resumed stage begins in the middle: the time left is judged by the steps taken here.
        first = max(done - 1, 0) if first is None else first
        if (done < total or not total) and now - last < PLAIN_SECONDS:
            return
        last = now
        left = (now - started) / max(done - first, 1) * (total - done)
        about = "  ".join(line for line in lines if line)
        of = (
            f"{done}/{total}  {clock(now - started)}, {clock(left)} left"
            if total
            else f"{done}  {clock(now - started)}"
        )
        console.print(
            f"{label:<10} {of}  {about}".rstrip(),
            highlight=False,
            markup=False,
        )

    return update
