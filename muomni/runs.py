"""The runs below a folder: what each stage's run.json and metrics.jsonl say about it. Loads no torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muomni.alive import is_alive
from muomni.config import STAGES
from muomni.errors import UserError

MAX_DEPTH = 5
"""Folders below the given one that are looked into."""
FRESH_SECONDS = 300.0
"""A stage of another host that wrote within this time is running there."""
TAIL_BYTES = 1 << 16
"""Of metrics.jsonl, read from its end."""
NEVER = "never started"


class RunsError(UserError, ValueError):
    """A folder that cannot be listed."""


def find_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run below a folder, each with all its stages in training order.

    Returns [{"run", "stages": [...]}]; of a stage: stage, state (finished, running, interrupted, failed, damaged or
    never started), size, step, steps, loss (by term), tokens_per_second, seconds, age (seconds since it last wrote) and
    reason; None for what is not known. Raises RunsError when the folder is not there.
    """
    if not folder.is_dir():
        raise RunsError(f"{folder}: is not a folder; give one that holds runs.")
    now = time.time()
    return [
        {"run": str(root), "stages": [_stage(root / stage, now) for stage in STAGES]}
        for root in sorted(_roots(folder))
    ]


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """`find_runs` as lines of text, one a stage in aligned columns; the stages that never started on one line."""
    shown = [stage for run in found for stage in run["stages"] if stage["state"] not in (NEVER, "damaged")]
    cells = {id(stage): _cells(stage) for stage in shown}
    widths = [max(map(len, column)) for column in zip(*cells.values(), strict=True)]
    lines: list[str] = []
    for run in found:
        stages = run["stages"]
        sizes = sorted({stage["size"] for stage in stages if stage["size"]})
        lines.append(f"{run['run']}  {', '.join(sizes) or 'unknown size'}")
        for stage in stages:
            if stage["state"] == "damaged":
                lines.append(f"  {stage['stage']}  damaged: {stage['reason']}")
            elif stage["state"] != NEVER:
                own = zip(cells[id(stage)], widths, strict=True)
                lines.append("  " + "  ".join(f"{cell:<{width}}" for cell, width in own).rstrip())
        if missing := [stage["stage"] for stage in stages if stage["state"] == NEVER]:
            lines.append(f"  {NEVER}: {', '.join(missing)}")
    return lines or ["no runs here; `muomni train` begins one."]


def _cells(stage: dict[str, Any]) -> tuple[str, ...]:
    loss = ", ".join(f"{name} {value:.3f}" for name, value in stage["loss"].items() if value)
    speed = stage["tokens_per_second"]
    return (
        stage["stage"], stage["state"], _of(stage), loss or "no loss yet",
        "" if speed is None else f"{speed:,.0f} tokens/s", _duration(stage["seconds"]),
        f"{_duration(stage['age'])} ago", stage["reason"] or "",
    )  # fmt: skip


def _of(stage: dict[str, Any]) -> str:
    return f"{stage['step']}/{stage['steps'] if stage['steps'] is not None else '?'}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _roots(folder: Path) -> Iterator[Path]:
    """Folders that hold a stage's run.json; hidden ones, and what a stage holds itself, are not looked into."""
    start = len(folder.parts)
    for place, names, _ in os.walk(folder):
        here = Path(place)
        stages = [name for name in names if name in STAGES and (here / name / "run.json").is_file()]
        if stages:
            yield here
        deeper = len(here.parts) - start < MAX_DEPTH
        names[:] = [n for n in names if deeper and n not in stages and not n.startswith(".")]


def _stage(directory: Path, now: float) -> dict[str, Any]:
    """What one stage's files say."""
    row: dict[str, Any] = {
        "stage": directory.name, "state": NEVER, "size": None, "step": 0, "steps": None, "loss": {},
        "tokens_per_second": None, "seconds": None, "age": None, "reason": None,
    }  # fmt: skip
    path = directory / "run.json"
    if not path.is_file():
        return row
    written = max(_written(path), _written(directory / "metrics.jsonl"))
    row["age"] = round(max(now - written, 0.0), 1)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config = record["config"]
        row |= {
            "size": str(config["model"]["size"]),
            "steps": int(config["train"]["steps"]),
            "step": int(record["step"]),
            "state": _state(record, age=row["age"]),
            "seconds": float(record["seconds"]),
            "reason": record.get("error"),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
        return row | {"state": "damaged", "reason": f"{path}: {why}"}
    if row["state"] != "finished":
        started = record.get("started")
        row["seconds"] = round(written - started, 1) if isinstance(started, int | float) else None
    last = _last_row(directory / "metrics.jsonl")
    row["loss"] = {k.removeprefix("loss/"): v for k, v in last.items() if k.startswith("loss/")}
    row["tokens_per_second"] = last.get("tokens_per_second")
    row["step"] = max(row["step"], last.get("step", 0))
    return row


def _state(record: dict[str, Any], *, age: float) -> str:
    if record["complete"]:
        return "finished"
    if record.get("state") in ("interrupted", "failed"):
        return record["state"]
    alive = is_alive(record)
    # Of another host only its files can be seen; of a process that is gone without a word, that it was killed.
    running = age < FRESH_SECONDS if alive is None and "host" in record else bool(alive)
    return "running" if running else "interrupted"


def _written(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a log that holds losses; empty when there is none."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and any(key.startswith("loss/") for key in row):
            return row
    return {}
