"""The run's own record: metrics.jsonl, one row a log; loss.svg and throughput.svg; trackers get the same rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muomni import files
from muomni.plot import line_plot, svg_file
from muomni.train.trackers import Tracker


class RunLog:
    """Appends rows to metrics.jsonl; a resumed run drops the rows after its checkpoint first."""

    def __init__(self, directory: Path, *, after: int, trackers: Sequence[Tracker] = ()) -> None:
        """Open the log of a run that goes on after step `after` (0: from the start).

        trackers: each is told every row that is written from now on.
        """
        self._trackers = trackers
        self.path = directory / "metrics.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_rows(directory) if row["step"] <= after]
        files.replace(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; non-finite numbers become null, which JSON can hold."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        files.append(self.path, json.dumps(clean) + "\n")
        self.tell(row)

    def tell(self, row: dict[str, Any]) -> None:
        """Give the finite numbers of a row to the trackers, and not to the file."""
        numbers = {
            k: float(v)
            for k, v in row.items()
            if isinstance(v, int | float) and math.isfinite(v) and k != "step"
        }
        for tracker in self._trackers:
            tracker.log(row["step"], numbers)


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


def write_plots(directory: Path, stage: str) -> None:
    """Draw the loss terms into loss.svg, and tokens/s, MFU and fill into throughput.svg; nothing without rows."""
    rows = read_rows(directory)
    terms = sorted({key for row in rows for key in row if key.startswith("loss/")})
    losses = {key.removeprefix("loss/"): _points(rows, key) for key in terms}
    if any(losses.values()):
        plot = line_plot(losses, title=f"{stage}: training loss", y_label="mean loss")
        files.replace(directory / "loss.svg", svg_file([plot]))
    speed = {"tokens/s": _points(rows, "tokens_per_second")}
    shares = {"fill": _points(rows, "fill_rate"), "MFU": _points(rows, "mfu")}
    if all(speed.values()) and any(shares.values()):
        plots = [
            line_plot(speed, title=f"{stage}: throughput", y_label="tokens/s"),
            line_plot(
                {k: v for k, v in shares.items() if v}, title=f"{stage}: fill rate and MFU", y_label="share"
            ),
        ]
        files.replace(directory / "throughput.svg", svg_file(plots))


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]
