"""The one command on a CUDA machine: `python -m benchmarks.gpu [--quick] [--out DIR] [--only op,...]`.

Builds the C++ extension in place, runs the GPU tests, times the kernels and the training steps, and prints the summary
last; under 9 minutes, under 3 with --quick. Every section is a process of its own with a share of the time: one that
crashes or runs out of time is reported and the others run. Results are written as sections finish, into
benchmarks/results/<date>_<device>_<commit>/ (rows.json, summary.md, plots/, logs). Needs no network. This process
itself imports neither torch nor triton.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report, sections
from benchmarks.ops import OPS
from benchmarks.provenance import ROOT, slug

OTHERS = ("build", "tests", "train", "stages", "inference")
"""Sections of a run besides the ops."""
NO_DEVICE = 2
"""Exit code without a CUDA device."""

PROBE = """
import json, sys, torch
from benchmarks import provenance
device = sys.argv[1]
if device == "cuda" and not torch.cuda.is_available():
    sys.exit(3)
free = torch.cuda.mem_get_info()[0] if device == "cuda" else 0
print(json.dumps({**provenance.describe(device, sys.argv[2]), "free": free}))
"""


@dataclass(kw_only=True)
class Budget:
    """Seconds of each section; a section may also use what those before it left."""

    total: float
    build: float
    tests: float
    train: float
    stages: float
    inference: float
    report: float = 8.0
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the end, the report's share taken off."""
        return self.total - self.report - (time.monotonic() - self.began)


FULL = {"total": 520.0, "build": 70.0, "tests": 130.0, "train": 50.0, "stages": 75.0, "inference": 85.0}
QUICK = {"total": 170.0, "build": 30.0, "tests": 35.0, "train": 18.0, "stages": 22.0, "inference": 28.0}
SMOKE_BUDGET = {
    "total": 300.0,
    "build": 60.0,
    "tests": 60.0,
    "train": 60.0,
    "stages": 60.0,
    "inference": 60.0,
}


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the model's shapes, under 3 minutes")
    parser.add_argument(
        "--out", type=Path, default=None, help="default: benchmarks/results/<date>_<device>_<commit>"
    )
    parser.add_argument(
        "--only", default=None, help="comma-separated ops, tests, build, train, stages, inference"
    )
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a smoke test of this command"
    )
    arguments = parser.parse_args(argv)
    chosen = arguments.only.split(",") if arguments.only else [*OPS, *OTHERS]
    unknown = sorted(set(chosen) - {*OPS, *OTHERS})
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} unknown; there are {', '.join([*OPS, *OTHERS])}")
    budget = Budget(**(SMOKE_BUDGET if arguments.device == "cpu" else QUICK if arguments.quick else FULL))
    command = " ".join(["python -m benchmarks.gpu", *(sys.argv[1:] if argv is None else argv)])
    with tempfile.TemporaryDirectory(prefix="muomni-benchmarks-") as scratch:
        first = sections.Run(Path(scratch), Path(scratch), arguments.device)
        probe = subprocess.run(
            [sys.executable, "-c", PROBE, arguments.device, command],
            cwd=ROOT, env=first.environment, text=True, capture_output=True, check=False,
        )  # fmt: skip
        if probe.returncode == 3:
            print("benchmarks.gpu needs a CUDA device and PyTorch sees none; --device cpu runs a smoke test")
            return NO_DEVICE
        if probe.returncode:
            print(f"benchmarks.gpu cannot start: {(probe.stderr.strip().splitlines() or ['no output'])[-1]}")
            return 1
        about = json.loads(probe.stdout)
        name = f"{about['date']}_{slug(about['device'])}_{slug(about['commit'])}"
        out = (arguments.out or ROOT / "benchmarks" / "results" / name).resolve()
        if out.exists() and any(out.iterdir()):
            if not any((out / name).exists() for name in ("summary.md", "rows.json")):
                print(f"--out: expected a new or empty folder, or one with earlier results, got {out}")
                return 1
            shutil.move(out, _aside(out))
        out.mkdir(parents=True, exist_ok=True)
        run = sections.Run(out, Path(scratch), arguments.device)
        return _sections(run, chosen, budget, about, quick=arguments.quick, command=command)


def _aside(path: Path) -> Path:
    """A name for earlier results, which are never overwritten."""
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{number}")


def _sections(
    run: sections.Run, chosen: list[str], budget: Budget, about: dict[str, Any], *, quick: bool, command: str
) -> int:
    ops = [op for op in OPS if op in chosen]
    if run.device == "cpu":
        print(sections.SMOKE)
    print(
        f"{about['device']}, torch {about['torch']}, triton {about['triton']}, commit {about['commit']}",
        flush=True,
    )
    helpers: list[subprocess.Popen[bytes]] = []
    if run.device == "cuda" and ops and "tests" in chosen and about["free"] > sections.ROOM:
        helpers = sections.precompile(run, ops, quick=quick, seconds=budget.tests)
    if "build" in chosen:
        run.note("build", sections.build(run, budget.build))
    if "tests" in chosen and run.device == "cuda":
        run.note("tests", sections.tests(run, min(budget.tests, budget.left), quick=quick))
    for helper in helpers:
        sections.stop(helper, 0.0)
    last = budget.inference if "inference" in chosen else 0.0
    later = last + (budget.stages if "stages" in chosen else 0.0)
    share = later + (budget.train if "train" in chosen else 0.0)
    if ops:
        run.note(
            "kernels", sections.kernels(run, ops, quick=quick, limit=budget.left - share, command=command)
        )
    if "train" in chosen:
        run.note(
            "train", sections.train(run, quick=quick, limit=max(10.0, budget.left - later), command=command)
        )
    if "stages" in chosen:
        run.note(
            "stages", sections.stages(run, quick=quick, limit=max(10.0, budget.left - last), command=command)
        )
    if "inference" in chosen:
        run.note(
            "inference", sections.inference(run, quick=quick, limit=max(10.0, budget.left), command=command)
        )
    written = report.plots(run.rows(), run.out / "plots")
    run.note("report", f"{len(written)} plots, {run.out}")
    run.rows_path.unlink(missing_ok=True)
    print()
    text = (run.out / "summary.md").read_text(encoding="utf-8")
    print(text)
    failed = [line for line in run.sections if re.search(r"FAILED|STOPPED|exit code", line)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
