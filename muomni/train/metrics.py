"""The run's own record: metrics.jsonl, one row a log, and loss.svg."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from muomni import files
from muomni.plot import line_plot


class RunLog:
    """Appends rows to metrics.jsonl; a resumed run drops the rows after its checkpoint first."""

    def __init__(self, directory: Path, *, after: int) -> None:
        """Open the log of a run that goes on after step `after` (0: from the start)."""
        self.path = directory / "metrics.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_rows(directory) if row["step"] <= after]
        files.replace(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; non-finite numbers become null, which JSON can hold."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        files.append(self.path, json.dumps(clean) + "\n")


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """All whole rows of a run's metrics.jsonl; a last line cut by a kill is left out."""
    path = directory / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write_plot(directory: Path, title: str) -> None:
    """Draw every loss term over the steps into loss.svg; nothing when no row is there."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in read_rows(directory):
        for key, value in row.items():
            if key.startswith("loss/") and value is not None:
                series.setdefault(key.removeprefix("loss/"), []).append((row["step"], value))
    if series:
        files.replace(directory / "loss.svg", line_plot(series, title=title, y_label="mean loss"))
