"""Times the kernels: `python -m benchmarks.kernels --ops rms_norm,swiglu --out rows.jsonl`.

One case of every op in turn, the important shapes first, until the time is up; what did not fit is listed as not run.
Rows are appended as they come, so that a crash loses one case: started again with the same file, it goes on behind it.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, provenance
from benchmarks.case import Case
from benchmarks.measure import FAILURES, Row, first_line, host_times, measure, row, sound
from benchmarks.ops import OPS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


RESTART = 3
"""Exit code after a failed capture: the same command goes on behind the case."""
UNLIMITED = 1e9
"""Seconds."""


class Log:
    """The rows of a run: read at the start, appended as they come."""

    def __init__(self, path: Path, common: dict[str, str]) -> None:
        """common: columns every row gets."""
        self.path, self.common = path, common
        self.seen = set()
        open_cases: dict[str, Row] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                if "started" in entry:
                    self.seen.add(entry["started"])
                    open_cases[entry["started"]] = entry["row"]
                elif "finished" in entry:
                    open_cases.pop(entry["finished"], None)
        for name, entry in open_cases.items():
            self.add({**entry, "status": "crashed: the process died in this case"})
            self._write({"finished": name})

    def _write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def add(self, entry: Row) -> None:
        """Append a row."""
        self._write({**entry, **self.common})

    def start(self, case: Case) -> None:
        """A case begins."""
        self.seen.add(case.name)
        self._write({"started": case.name, "row": row(case, "all", "all", "crashed")})

    def finish(self, case: Case) -> None:
        """A case ended, whatever came of it."""
        self._write({"finished": case.name})


def read_rows(path: Path) -> list[Row]:
    """The rows of a log, without its marks; none when there is no file."""
    if not path.exists():
        return []
    entries = (json.loads(line) for line in path.read_text().splitlines())
    return [entry for entry in entries if "started" not in entry and "finished" not in entry]


def all_cases(
    ops: tuple[str, ...], device: torch.device, dtype: torch.dtype, *, smoke: bool, model_only: bool
) -> Iterator[Case]:
    """The first case of every op, then the second of every op, and so on."""
    open_ops: list[Iterator[Case]] = []
    for op in ops:
        module = import_module(f"benchmarks.bench_{op}")
        open_ops.append(iter(module.cases(device, dtype, smoke=smoke)))
    while open_ops:
        for cases in list(open_ops):
            case = next(cases, None)
            if case is None:
                open_ops.remove(cases)
            elif case.model or not model_only:
                yield case


AUTOTUNED = "compile-max-autotune"
N_AUTOTUNED = {"linear_cross_entropy": 0, "vq_nearest": 0}
"""Cases of an op that autotuned compilation runs on when time is limited: two, but matrix products take it minutes."""


def without_autotuned(case: Case) -> set[str]:
    """The contenders that compile in seconds."""
    return set(case.contenders) - {AUTOTUNED}


def compile_all(cases: Iterator[Case], deadline: float) -> None:
    """Fill the compilers' caches on disk, without timing anything.

    Nothing autotuned: it would choose by times taken while other processes use the GPU.
    """
    ops: set[str] = set()
    for case in cases:
        small = [] if case.op in ops else [_tiny(case)]
        ops.add(case.op)
        for each in [*small, case]:
            if time.monotonic() > deadline:
                return
            torch.compiler.reset()
            try:
                sound(each, without_autotuned(each))
            except FAILURES as error:
                print(f"{each.name}: {first_line(error)}", flush=True)
            _free()


def _tiny(case: Case) -> Case:
    """The same op on tensors so small that only the host's time counts."""
    return import_module(f"benchmarks.bench_{case.op}").tiny(case.make(0)[0].device, case.dtype)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def time_all(arguments: argparse.Namespace, cases: Iterator[Case], log: Log, deadline: float) -> int:
    """Measure case after case until the deadline; list the rest. Gives the exit code."""
    host: dict[str, dict[str, dict[str, float]]] = {}
    n_timed: Counter[str] = Counter()
    limits = {"rounds": 15, "seconds": 0.15} if arguments.quick else {"rounds": 40, "seconds": 0.4}
    for case in cases:
        if case.name in log.seen:
            continue
        if time.monotonic() > deadline:
            log.add(row(case, "all", "all", "not run: out of time"))
            continue
        log.start(case)
        began = time.monotonic()
        torch.compiler.reset()
        try:
            if case.op not in host:
                host[case.op] = host_times(_tiny(case), without_autotuned(case))
                torch.compiler.reset()
            limited = arguments.seconds < UNLIMITED and n_timed[case.op] >= N_AUTOTUNED.get(case.op, 2)
            n_timed[case.op] += 1
            chosen = None
            if arguments.quick or limited or not case.model:
                chosen = without_autotuned(case)
                if AUTOTUNED in case.contenders:
                    log.add(row(case, AUTOTUNED, "all", "not run: autotuning takes too long for every case"))
            for entry in measure(case, wanted=chosen, host=host[case.op], **limits):
                log.add(entry)
        except harness.BrokenCaptureError:
            log.finish(case)
            return RESTART
        except FAILURES as error:
            log.add(row(case, "all", "all", f"failed: {first_line(error)}"))
        log.finish(case)
        _free()
        print(f"{case.name}: {time.monotonic() - began:.1f} s", flush=True)
    return 0


def main(argv: list[str] | None = None, *, ops: tuple[str, ...] = OPS) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--ops", default=",".join(ops), help="comma-separated")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default=None, choices=DTYPES, help="bf16, and fp32 on a CPU")
    parser.add_argument(
        "--out", type=Path, default=None, help="rows, appended (default: benchmark-rows.jsonl)"
    )
    parser.add_argument(
        "--seconds", type=float, default=UNLIMITED, help="stop starting cases after this long"
    )
    parser.add_argument("--quick", action="store_true", help="the model's shapes, fewer rounds")
    parser.add_argument("--compile-only", action="store_true", help="fill the compilers' caches")
    parser.add_argument("--command", default=None, help="recorded instead of this command")
    arguments = parser.parse_args(argv)
    names = tuple(arguments.ops.split(","))
    unknown = sorted(set(names) - set(OPS))
    if unknown:
        parser.error(f"--ops: {', '.join(unknown)} unknown; there are {', '.join(OPS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA device; --device cpu runs a smoke test")
        return 2
    deadline = time.monotonic() + arguments.seconds
    device, smoke = torch.device(arguments.device), arguments.device == "cpu"
    if smoke:
        print(harness.SMOKE)
    dtype = DTYPES[arguments.dtype or ("fp32" if smoke else "bf16")]
    cases = all_cases(names, device, dtype, smoke=smoke, model_only=arguments.quick)
    if arguments.compile_only:
        compile_all(cases, deadline)
        return 0
    out = arguments.out or Path("benchmark-rows.jsonl")
    log = Log(out, provenance.describe(arguments.device, arguments.command))
    return time_all(arguments, cases, log, deadline)


if __name__ == "__main__":
    sys.exit(main())
