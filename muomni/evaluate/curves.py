"""What the stages of a run lost while they were trained, as plots, from their metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from muomni.config import STAGES
from muomni.plot import line_plot


def curves(root: Path) -> dict[str, str]:
    """Stage -> SVG, of the stages that have a log with losses, in the order of training."""
    return {stage: svg for stage in STAGES if (svg := curve(root / stage))}


def curve(directory: Path) -> str:
    """A stage's training losses as SVG; empty when it has none."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(directory / "metrics.jsonl"):
        for name, value in row.items():
            if name.startswith("loss/") and value is not None:
                series.setdefault(name.removeprefix("loss/"), []).append((row["step"], value))
    # A term that is zero all along is one that this run does not have.
    shown = {name: points for name, points in series.items() if any(value for _, value in points)}
    return line_plot(shown, title=f"{directory.name}: training loss") if shown else ""


def _rows(path: Path) -> list[dict[str, Any]]:
    """Whole rows; a last line cut by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
