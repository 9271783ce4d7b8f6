"""Training steps of every stage and size against plain PyTorch, its compiled form, Liger-Kernel, others, and a floor.

`python -m benchmarks.bench_train [--quick | --smoke] [--peer path/to/adapter.py:function]`. The text stage's
contenders start from the same weights, must agree in their first losses and gradients, and take their steps in turn,
in a new order every round. On CUDA a round is a block of steps that ends with the device done; elsewhere one step, by
the clock and in CPU time of all threads. Ours is the loop's own step. Rows, a summary and a plot go to
benchmarks/results/<run>/.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import harness, provenance, train_cases, train_floor, train_report
from benchmarks.kernels import Log
from benchmarks.measure import FAILURES, first_line
from benchmarks.mel_report import processor
from benchmarks.train_cases import Case, Contender
from benchmarks.train_floor import Yardstick
from benchmarks.train_peers import NotRun, load_adapter
from benchmarks.train_report import START
from muomni.config import STAGES
from muomni.errors import UserError

Row = dict[str, Any]
BLOCK = {"cuda": 4, "cpu": 1}
"""Steps timed together: the host of a GPU must not wait between them."""
FEWEST = 4
"""Rounds at least: each batch once where a round is one step."""
AGREES = {False: 1e-4, True: 5e-2}
"""Nats by which a first loss may differ from float32's, in float32 and in bfloat16 arithmetic."""
NORM_AGREES = {False: 1e-3, True: 5e-2}
"""Share by which a first gradient norm may differ from ours of the same precision."""
MOST_ON_CPU = 2_048
"""Positions of a batch on a CPU: a speed in tokens needs no more, and mask and logits of a plain model grow."""
START_POSITIONS = 32 * 512


class WrongError(RuntimeError):
    """What shows that a contender computes something else."""


def cases(sizes: Sequence[str], stages: Sequence[str], device: torch.device, *, smoke: bool) -> list[Case]:
    """In order of importance: text of every size, full and packed, then the other stages."""
    most = 512 if smoke else MOST_ON_CPU if device.type == "cpu" else None
    text = [
        Case(size=size, stage="text", kind=kind, run=train_cases.run_of(size, "text", most=limit))
        for size in sizes
        for kind in ("full", "packed")
        for limit in [most if size != START or smoke else START_POSITIONS]
        if "text" in stages and not (size == START and kind == "full")
    ]
    others = [
        Case(size=size, stage=stage, kind="full", run=train_cases.run_of(size, stage, most=most))
        for size in reversed(sizes)
        if size != START
        for stage in stages
        if stage != "text"
    ]
    return text + others


def interleave(
    ready: dict[str, Contender], device: torch.device, *, rounds: int, seconds: float
) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) microseconds a step of every contender, a block a round, in a new order every round.

    At least FEWEST rounds are done, and no more once `seconds` are over.
    """
    names, rng, n = list(ready), np.random.default_rng(0), BLOCK[device.type]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    began, number = time.perf_counter(), 3
    for turn in range(rounds):
        if turn >= FEWEST and time.perf_counter() - began > seconds:
            break
        for name in rng.permutation(names):
            gc.disable()
            harness.synchronize(device)
            cpu, wall = time.process_time(), time.perf_counter()
            for i in range(n):
                ready[name].step(number + i)
            harness.synchronize(device)
            elapsed = time.perf_counter() - wall, time.process_time() - cpu
            gc.enable()
            times[name].append((elapsed[0] * 1e6 / n, elapsed[1] * 1e6 / n))
        number += n
    return times


def prepare(
    make: Callable[[], Contender], device: torch.device, *, loss: float | None, norm: float | None
) -> tuple[Contender, Row]:
    """A contender after its first steps, and what they told: peak memory, first loss and gradient norm.

    loss, norm: what those must be, None for anything finite. Raises WrongError where they are not, and whatever the
    contender raises.
    """
    cuda = device.type == "cuda"
    before = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    contender = make()
    first = contender.step(0)
    found = float(first[0]), None if first[1] is None else float(first[1])
    for value, wanted, share, what in (
        (found[0], loss, AGREES[contender.half], "loss"),
        (found[1], norm, NORM_AGREES[contender.half] * (norm or 0.0), "gradient norm"),
    ):
        if value is not None and not np.isfinite(value):
            raise WrongError(f"first {what} {value}")
        if value is not None and wanted is not None and abs(value - wanted) > share:
            raise WrongError(f"first {what} {value:.6f}, expected {wanted:.6f}")
    if cuda:
        for i in (1, 2):
            contender.step(i)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        contender.step(1)
        peak = contender.held() + cpu_peak(lambda: contender.step(2))
    return contender, {"loss": found[0], "grad_norm": found[1], "peak_bytes": peak}


def cpu_peak(call: Callable[[], Any]) -> int:
    """Most bytes of tensors a call holds at one time beyond those it found."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    level = peak = 0
    for event in sorted(_events(profiler), key=lambda e: e.start_ns()):
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def _events(profiler: Any) -> list[Any]:
    return list(profiler.profiler.kineto_results.events())


def busy_share(spans: Sequence[tuple[int, int]]) -> float | None:
    """Share of the time from the first start to the last end that at least one (start, end) covers; None of none."""
    if not spans:
        return None
    ordered = sorted(spans)
    covered, end = 0, ordered[0][0]
    for start, stop in ordered:
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered / max(1, end - ordered[0][0])


def busy(contender: Contender, device: torch.device) -> float | None:
    """Share of a few steps in which a kernel or copy ran on a CUDA device; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for i in range(BLOCK["cuda"]):
            contender.step(i)
        torch.cuda.synchronize()
    spans = [
        (e.start_ns(), e.start_ns() + e.duration_ns())
        for e in _events(profiler)
        if e.device_type() == DeviceType.CUDA and e.duration_ns() > 0
    ]
    return busy_share(spans)


@dataclass(kw_only=True)
class Settings:
    """How a run is done."""

    device: torch.device
    root: Path
    """For tokenizers."""
    precisions: Sequence[str]
    """fp32, bf16."""
    peers: Sequence[str] = ()
    """Specifications of adapters."""
    rounds: int
    seconds: float
    """Of a case's rounds; at least FEWEST are done."""
    deadline: float
    """By time.monotonic: no case begins after it."""
    backend: str = "inductor"
    """Of torch.compile for the peers."""
    yards: dict[bool, Yardstick] = field(default_factory=dict)
    """By half, the best so far: others may use the machine."""

    def measure(self, *, half: bool) -> Yardstick:
        """The yardstick of a precision, measured again."""
        new = train_floor.yardstick(self.device, half=half)
        old = self.yards.get(half, new)
        best = Yardstick(flops=max(new.flops, old.flops), bandwidth=max(new.bandwidth, old.bandwidth))
        self.yards[half] = best
        return best


def told(case: Case, settings: Settings) -> Iterator[Row]:
    """`timed`; a case whose batches or floor cannot be made is a row, and no reason to leave the others out."""
    try:
        yield from timed(case, settings)
    except FAILURES as error:
        yield {**_common(case), "contender": f"{train_report.OURS}, all", "dtype": "all",
               "status": f"failed: {first_line(error)}"}  # fmt: skip


def _common(case: Case) -> Row:
    return {
        "op": "train", "variant": case.variant, "size": case.size, "stage": case.stage, "kind": case.kind,
        "model": True, "pass": "step", "positions": case.n,
    }  # fmt: skip


def timed(case: Case, settings: Settings) -> Iterator[Row]:
    """The rows of a case; contenders that cannot run, fail or compute something else get one that says so."""
    device = settings.device

    def row(name: str, status: str, **values: Any) -> Row:
        dtype = "bfloat16" if name.endswith("bf16") else "float32"
        return {**_common(case), "contender": name, "dtype": dtype, "status": status, **values}

    if time.monotonic() > settings.deadline:
        yield row(train_report.OURS, "not run: out of time")
        return
    made = train_cases.batches(case, settings.root / case.size)
    packed = case.kind == "packed"
    fill = (
        sum(batch.n_tokens / case.n for batch in made) / len(made)
        if packed
        else train_cases.fill(case.run, settings.root / case.size)
    )
    loss = train_cases.expected(case, made[0], device) if case.stage == "text" else None
    work = train_floor.count(case.run, made[0] if packed else None)
    ready: dict[str, Contender] = {}
    first: dict[str, Row] = {}
    norms: dict[bool, float | None] = {}
    for name, make in train_cases.contenders(
        case, made, device, precisions=settings.precisions, peers=settings.peers, backend=settings.backend
    ):
        half, foreign = name.endswith("bf16"), name.rpartition(", ")[0] in settings.peers
        try:
            wanted = (None, None) if foreign else (loss, norms.get(half))
            ready[name], first[name] = prepare(make, device, loss=wanted[0], norm=wanted[1])
            norms.setdefault(half, first[name]["grad_norm"])
        except NotRun as reason:
            yield row(name, f"not run: {reason}")
        except WrongError as reason:
            yield row(name, f"wrong: {reason}")
        except FAILURES as error:
            yield row(name, f"failed: {first_line(error)}")
        gc.collect()
    yards = {half: settings.measure(half=half) for half in {c.half for c in ready.values()}}
    left = min(settings.seconds, settings.deadline - time.monotonic())
    for name, values in interleave(ready, device, rounds=settings.rounds, seconds=left).items():
        contender = ready[name]
        figures = train_floor.figures(
            values, positions=contender.positions, fill=fill, work=work, yard=yards[contender.half],
            half=contender.half, own_time=device.type == "cpu",
            n_batches=max(1, train_cases.N_BATCHES // BLOCK[device.type]),
        )  # fmt: skip
        yield row(name, "ok", **figures, **first[name], busy=busy(contender, device))


def _machine(device: torch.device) -> dict[str, str]:
    """What else a result depends on."""
    name = processor() if device.type == "cpu" else provenance.device_name("cuda")
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return {"processor": name, "threads": str(torch.get_num_threads()), "load": load, "kind": device.type}


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_train", description=__doc__)
    parser.add_argument(
        "--device", default=None, choices=("cuda", "cpu"), help="default: CUDA if there is one"
    )
    parser.add_argument(
        "--sizes", default=None, help="comma-separated; default: nano,tiny,start, on CUDA base too"
    )
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated")
    parser.add_argument("--precisions", default=None, help="fp32,bf16; default: both, on CUDA bf16")
    parser.add_argument("--peer", action="append", default=[], help="path/to/adapter.py:function")
    parser.add_argument("--quick", action="store_true", help="tiny and the starting size, few rounds")
    parser.add_argument("--smoke", action="store_true", help="seconds, nano on tiny batches: not a result")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no case is begun after that")
    parser.add_argument(
        "--rows", type=Path, default=None, help="add rows to this file and write nothing else"
    )
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results/<run>")
    parser.add_argument("--command", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench_train: no CUDA device; --device cpu measures the CPU")
        return 2
    try:
        for spec in arguments.peer:
            load_adapter(spec)
    except UserError as error:
        print(f"bench_train: {error}", file=sys.stderr)
        return 2
    default = "nano" if arguments.smoke else "tiny,start" if arguments.quick else "nano,tiny,start"
    default += ",base" if device.type == "cuda" and not arguments.smoke else ""
    sizes = (arguments.sizes or default).split(",")
    precisions = (arguments.precisions or ("bf16" if device.type == "cuda" else "fp32,bf16")).split(",")
    about = provenance.describe(device.type, arguments.command) | _machine(device)
    about |= {"note": harness.SMOKE} if arguments.smoke and device.type == "cpu" else {}
    name = f"{about['date']}_train-{provenance.slug(about['processor'])}_{provenance.slug(about['commit'])}"
    out = arguments.out or provenance.ROOT / "benchmarks" / "results" / name
    rounds, seconds = (FEWEST, 0.0) if arguments.smoke else (6, 10.0) if arguments.quick else (40, 40.0)
    rows: list[Row] = []
    log = Log(arguments.rows, about) if arguments.rows else None
    with tempfile.TemporaryDirectory(prefix="muomni-train-") as scratch:
        settings = Settings(
            device=device, root=Path(scratch), precisions=precisions, peers=arguments.peer, rounds=rounds,
            seconds=seconds, deadline=time.monotonic() + arguments.seconds,
            # What the compiler generates takes a minute to build.
            backend="eager" if arguments.smoke else "inductor",
        )  # fmt: skip
        for case in cases(sizes, arguments.stages.split(","), device, smoke=arguments.smoke):
            torch.compiler.reset()
            for found in told(case, settings):
                rows.append(found)
                print(train_report.line(found), flush=True)
                if log:
                    log.add(found)
            gc.collect()
    if log:
        return 0
    out.mkdir(parents=True, exist_ok=True)
    summary = train_report.summary(rows, about)
    (out / "rows.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    (out / "summary.md").write_text(summary)
    (out / "train.svg").write_text(train_report.plot(rows))
    print(summary)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
