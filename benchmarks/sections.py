"""Sections of `benchmarks.gpu`: each a process of its own with a share of the time, its outcome in words."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.provenance import ROOT

SMOKE = "CPU, smoke run, not a result"
WORKERS = (
    ("rms_norm",),
    ("add_rms_norm",),
    ("qk_norm_rope",),
    ("swiglu", "rope"),
    ("linear_cross_entropy",),
    ("vq_nearest", "attention", "mel_downsample", "attention_decode"),
)
"""Ops of each process that fills the compilers' caches while the tests run."""
ROOM = 40 * 2**30
"""Free bytes of device memory from which tests and compilation share the device."""


@dataclass(kw_only=True)
class Outcome:
    """How a process ended."""

    code: int | None
    """None: stopped at its limit."""
    seconds: float
    tail: str
    """The last lines of its output."""


class Run:
    """Folder, environment and outcomes of one run."""

    def __init__(self, out: Path, cache: Path, device: str) -> None:
        """cache: for the compilers; the same for all sections."""
        self.out, self.device = out, device
        self.rows_path = out / "rows.jsonl"
        self.sections: list[str] = []
        path = os.pathsep.join(
            [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        self.environment = {
            **os.environ,
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "TRITON_CACHE_DIR": str(cache / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "8",
        }
        # A forced backend would be timed as every other one's; the interpreter is for tests.
        for name in ("MUOMNI_BACKEND", *(["TRITON_INTERPRET"] if device == "cuda" else [])):
            self.environment.pop(name, None)

    def start(self, name: str, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """A process in a group of its own, its output in <name>.log."""
        with (self.out / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.environment | variables, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def run(self, name: str, *command: str, limit: float, **variables: str) -> Outcome:
        """Start, wait at most `limit` seconds, stop."""
        began = time.monotonic()
        process = self.start(name, *command, **variables)
        code = stop(process, limit)
        lines = (self.out / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return Outcome(code=code, seconds=time.monotonic() - began, tail="\n".join(lines[-3:]))

    def note(self, section: str, outcome: str) -> None:
        """Record a section's outcome, print it, and write what there is."""
        self.sections.append(f"{section}: {outcome}")
        print(f"[{section}] {outcome}", flush=True)
        self.write()

    def rows(self) -> list[dict[str, Any]]:
        """The rows so far."""
        if not self.rows_path.exists():
            return []
        entries = (json.loads(line) for line in self.rows_path.read_text().splitlines())
        return [entry for entry in entries if "status" in entry]

    def write(self) -> str:
        """Write rows.json and summary.md; gives the summary."""
        rows = self.rows()
        (self.out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        note = SMOKE if self.device == "cpu" else ""
        text = report.summary(rows, self.sections, note=note)
        (self.out / "summary.md").write_text(text, encoding="utf-8")
        return text


def stop(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """The exit code within `limit` seconds; None when the process and its children had to be killed."""
    try:
        return process.wait(timeout=max(0.0, limit))
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def build(run: Run, limit: float) -> str:
    """Compile the C++ extension beside its sources."""
    target = ROOT / "kernels" / "muomni_kernels" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    newest = max(path.stat().st_mtime for path in [ROOT / "setup.py", *(ROOT / "csrc").iterdir()])
    if target.exists() and target.stat().st_mtime > newest:
        return "there already"
    done = run.run("build", sys.executable, "setup.py", "-q", "build_ext", "--inplace", limit=limit)
    if target.exists():
        return f"{done.seconds:.0f} s"
    reason = (
        f"stopped after {limit:.0f} s" if done.code is None else done.tail.splitlines()[-1:] or ["no output"]
    )
    return f"skipped, the references run: {reason if isinstance(reason, str) else reason[0]}"


QUICK_TESTS = "exact or waits or replayed"
"""Names of the tests of a quick run: results, host syncs, graphs."""


def tests(run: Run, limit: float, *, quick: bool) -> str:
    """The tests marked gpu; a part of them in a quick run, which pytest's last line says."""
    options = (
        "-m",
        "gpu",
        "-q",
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
        *(("-k", QUICK_TESTS) if quick else ()),
        "tests/kernels",
        "tests/infer",
    )
    done = run.run("tests", sys.executable, "-m", "pytest", *options, limit=limit)
    if done.code is None:
        log = (run.out / "tests.log").read_text(errors="replace")
        n_results = sum(map(len, re.findall(r"^[.sxFE]+", log, re.MULTILINE)))
        return f"STOPPED after {limit:.0f} s and {n_results} results (tests.log)"
    summary = done.tail.splitlines()[-1] if done.tail else "no output"
    return (
        f"{'ok' if done.code == 0 else 'FAILED' if done.code == 1 else f'exit code {done.code}'}: {summary}"
    )


def precompile(run: Run, ops: list[str], *, quick: bool, seconds: float) -> list[subprocess.Popen[bytes]]:
    """Start the processes that fill the compilers' caches."""
    processes = []
    for i, group in enumerate(WORKERS):
        chosen = [op for op in group if op in ops]
        if chosen:
            command = [
                "--compile-only",
                "--ops",
                ",".join(chosen),
                "--device",
                run.device,
                "--seconds",
                f"{seconds}",
            ]
            command += ["--quick"] if quick else []
            processes.append(
                run.start(
                    f"compile-{i}", sys.executable, "-m", "benchmarks.kernels", *command,
                    TORCHINDUCTOR_COMPILE_THREADS="2", OMP_NUM_THREADS="1",
                )
            )  # fmt: skip
    return processes


def kernels(run: Run, ops: list[str], *, quick: bool, limit: float, command: str) -> str:
    """Time the ops; a process that dies is started again behind the case it died in."""
    end = time.monotonic() + limit
    crashes = 0
    while True:
        left = end - time.monotonic()
        # A case that was started takes a while to finish: the limit is soft for it, hard a little later.
        arguments = ["--ops", ",".join(ops), "--device", run.device, "--out", str(run.rows_path)]
        arguments += [
            "--seconds",
            f"{max(0.0, left - 12):.1f}",
            "--command",
            command,
            *(["--quick"] if quick else []),
        ]
        done = run.run(
            "kernels", sys.executable, "-m", "benchmarks.kernels", *arguments, limit=max(5.0, left + 5)
        )
        if done.code == 0:
            break
        crashes += 1
        if done.code is None or crashes > 8 or end - time.monotonic() < 20:
            return f"STOPPED ({crashes} crashes); {done.tail.splitlines()[-1:]}"
    rows = run.rows()
    timed = {(row["op"], row["variant"]) for row in rows if row["status"] == "ok"}
    faults = [
        f"{row['op']} {row['variant']} {row['contender']}: {row['status']}"
        for row in rows
        if row["contender"] in report.OURS
        and row["status"].partition(":")[0] in ("wrong", "failed", "crashed")
    ]
    summary = f"{len(timed)} cases timed" + (f", {crashes} crashed" if crashes else "")
    return f"FAILED, {len(faults)} of our own, the first {faults[0]}; {summary}" if faults else summary


def train(run: Run, *, quick: bool, limit: float, command: str) -> str:
    """Training steps with kernels on and off."""
    sizes = "nano" if run.device == "cpu" else "tiny" if quick else "tiny,base"
    arguments = ["--sizes", sizes, "--device", run.device, "--out", str(run.rows_path), "--command", command]
    arguments += ["--seconds", f"{limit * 0.7:.1f}", *(["--quick"] if quick else [])]
    done = run.run("train", sys.executable, "-m", "benchmarks.train_step", *arguments, limit=limit)
    if done.code == 0:
        return f"{done.seconds:.0f} s"
    ended = f"STOPPED after {limit:.0f} s" if done.code is None else f"FAILED, exit code {done.code}"
    return f"{ended}; {done.tail.splitlines()[-1] if done.tail else 'no output'} (train.log)"


def stages(run: Run, *, quick: bool, limit: float, command: str) -> str:
    """Training steps against peers and floor; cases that time is not left for are named in the rows."""
    # A case that was begun takes a while, most of it in the compilers.
    sizes = ["--sizes", "tiny" if quick else "tiny,base,start"]
    arguments = ["--quick", *sizes] if run.device == "cuda" else ["--smoke", "--stages", "text"]
    return _others(
        run, "stages", "bench_train", arguments, op="train", seconds=limit * 0.5, limit=limit, command=command
    )


def inference(run: Run, *, quick: bool, limit: float, command: str) -> str:
    """Decoding, turns, encoders and memory; the most important cases first."""
    sizes = ["--sizes", "tiny" if quick else "tiny,nano,base"]
    arguments = ["--quick", *sizes] if run.device == "cuda" else ["--smoke", "--only", "decode"]
    return _others(
        run,
        "inference",
        "bench_infer",
        arguments,
        op="infer",
        seconds=limit * 0.8,
        limit=limit,
        command=command,
    )


def _others(
    run: Run,
    name: str,
    module: str,
    arguments: list[str],
    *,
    op: str,
    seconds: float,
    limit: float,
    command: str,
) -> str:
    """A benchmark that adds rows of its own to the run's; seconds: it begins no case after."""
    arguments = [*arguments, "--device", run.device, "--rows", str(run.rows_path), "--command", command]
    done = run.run(
        name,
        sys.executable,
        "-m",
        f"benchmarks.{module}",
        *arguments,
        "--seconds",
        f"{seconds:.1f}",
        limit=limit,
    )
    own = [row for row in run.rows() if row["op"] == op and row["contender"].startswith("ours")]
    faults = [row for row in own if row["status"].partition(":")[0] in ("wrong", "failed")]
    timed = f"{sum(row['status'] == 'ok' for row in own)} rows of ours"
    if done.code == 0 and not faults:
        return f"{timed}, {done.seconds:.0f} s"
    ended = f"STOPPED after {limit:.0f} s" if done.code is None else f"FAILED, exit code {done.code}"
    if faults:
        ended = f"FAILED, {faults[0]['variant']}, {faults[0]['contender']}: {faults[0]['status']}"
    return f"{ended}; {timed} ({name}.log)"
