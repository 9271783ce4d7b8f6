"""`muomni eval all`: measure a model's families on held-out items, write one JSON file and one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muomni.config import STAGES
from muomni.data.items import Split
from muomni.evaluate.curves import curves
from muomni.evaluate.eval_page import render_eval
from muomni.evaluate.judges import Panel
from muomni.evaluate.run import Progress, evaluate
from muomni.files import replace
from muomni.infer.session import load


def evaluate_all(
    path: Path,
    *,
    out: Path,
    families: Sequence[str],
    data: str | None = None,
    split: Split = "test",
    n: int = 48,
    seed: int = 0,
    panel: Panel | None = None,
    machine: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a run, or a whole model without its stages; write out/eval.json and out/eval.html.

    Returns what eval.json holds. Raises what `muomni.load` and `evaluate` raise.
    """
    session = load(path)
    root = path if any((path / stage).is_dir() for stage in STAGES) else None
    found = evaluate(
        session, root, data=data, split=split, n=n, seed=seed, families=families, panel=panel, progress=progress
    )  # fmt: skip
    result = {
        "model": str(path),
        "machine": machine,
        "judges": panel.about if panel else {},
        **found.to_dict(),
    }
    figures, missing = result["figures"], result["missing"]
    beaten = sum(row["beats_baseline"] for row in figures)
    page = render_eval(
        found, mel=session.config.mel, title=f"How well {path} does",
        lead=f"{session.config.size}, on split {split} of {found.about['data']}: {len(figures)} figures, {beaten} of "
        f"them better than their baseline; {len(missing)} could not be measured. {machine}",
        plots=curves(root) if root is not None else {},
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    replace(out / "eval.json", json.dumps(result, indent=2) + "\n")
    replace(out / "eval.html", page)
    return result
