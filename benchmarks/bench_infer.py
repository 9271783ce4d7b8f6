"""Inference: decoding against peers and a floor, whole spoken turns, encoders, memory.

`python -m benchmarks.bench_infer [--quick | --smoke] [--peer path/to/adapter.py:function]`. Contenders are timed in
turn, in a new order every round, by the clock and in CPU time of all threads. An adapter is called with
`infer_peers.DecodeShape` and gives decode(n). Rows and a summary go to benchmarks/results/<run>/.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import harness, infer_cases, infer_report, provenance, train_floor
from benchmarks.infer_cases import N_NEW, DecodeCase
from benchmarks.infer_peers import Decode
from benchmarks.infer_report import OURS, START
from benchmarks.kernels import Log
from benchmarks.measure import FAILURES, first_line
from benchmarks.mel_report import processor
from benchmarks.train_peers import NotRun, load_adapter
from muomni.errors import UserError
from muomni.models.recording import cuda_record

Row = dict[str, Any]


def decode_cases(sizes: Sequence[str], device: torch.device, *, smoke: bool) -> list[DecodeCase]:
    """Every size alone and in batches; on a CPU by one thread, and of tiny by two."""
    cuda = device.type == "cuda"
    threads = (0,) if cuda else (1,) if smoke else (1, 2)
    return [
        DecodeCase(size=size, batch=batch, threads=n)
        for size in sizes
        for n in (threads if size in ("tiny", "nano") else threads[:1])
        for batch in ((1, 2) if smoke else (1,) if size == START else (1, 8, 32))
    ]


def timed(
    case: DecodeCase, device: torch.device, *, peers: Sequence[str], rounds: int, seconds: float
) -> Iterator[Row]:
    """The rows of a case."""
    common = {
        "op": "infer", "pass": "decode", "variant": case.variant, "size": case.size, "batch": case.batch,
        "threads": case.threads, "model": True,
    }  # fmt: skip
    if case.threads:
        torch.set_num_threads(case.threads)
    ready: dict[str, Decode] = {}
    for name, make, wanted in infer_cases.contenders(case, device, peers=tuple(peers)):
        try:
            decode = make()
            first = torch.as_tensor(decode(4)).cpu()
            if wanted is not None and not torch.equal(first, wanted.cpu()):
                yield {
                    **common,
                    "contender": name,
                    "status": f"wrong: {first[0].tolist()}, not {wanted[0].tolist()}",
                }
                continue
            ready[name] = decode
        except NotRun as reason:
            yield {**common, "contender": name, "status": f"not run: {reason}"}
        except FAILURES as error:
            yield {**common, "contender": name, "status": f"failed: {first_line(error)}"}
        gc.collect()
    best: dict[str, dict[int, list[float]]] = {
        name: {1: [np.inf] * 2, N_NEW + 1: [np.inf] * 2} for name in ready
    }
    rng, began = np.random.default_rng(0), time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - began > seconds:
            break
        for name in rng.permutation(list(ready)):
            for n, found in best[name].items():
                gc.disable()
                harness.synchronize(device)
                cpu, wall = time.process_time(), time.perf_counter()
                ready[name](n)
                harness.synchronize(device)
                spent = time.perf_counter() - wall, time.process_time() - cpu
                gc.enable()
                found[:] = [min(old, new) for old, new in zip(found, spent, strict=True)]
    for name, found in best.items():
        wall, cpu = (max(1e-9, found[N_NEW + 1][i] - found[1][i]) for i in (0, 1))
        floor = floor_seconds(case, device, name, ready[name])
        yield {
            **common, "contender": name, "status": "ok", "tokens_per_s": case.batch * N_NEW / wall,
            "tokens_per_cpu_s": case.batch * N_NEW / cpu, "prefill_ms": found[1][0] * 1e3,
            "step_ms": wall / N_NEW * 1e3, "floor_ms": floor * 1e3, "of_floor": floor / (wall / N_NEW),
        }  # fmt: skip


def floor_seconds(case: DecodeCase, device: torch.device, name: str, decode: Decode) -> float:
    """What a step takes at least: weights read, products, and on a GPU its kernels one behind another in a graph."""
    bytes_a_weight = 1 if name.endswith("int8") else 2 if name.endswith("bf16") else 4
    cfg = infer_cases.config(case.size).thinker
    n_bytes = infer_cases.step_bytes(cfg, bytes_a_weight=bytes_a_weight)
    flops = 2.0 * case.batch * infer_cases.step_bytes(cfg, bytes_a_weight=1)
    rate = train_floor.yardstick(device, half=name.endswith("bf16"), seconds=0.3).flops
    launches = launch_seconds(decode) if device.type == "cuda" else 0.0
    return max(n_bytes / read_speed(n_bytes, device), flops / rate, launches)


def launch_seconds(decode: Decode) -> float:
    """Seconds that a graph of as many kernels as a step has takes when they do next to nothing."""

    def kernels(n: int) -> int:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            decode(n)
            torch.cuda.synchronize()
        return sum(e.device_type() == DeviceType.CUDA for e in profiler.profiler.kineto_results.events())  # type: ignore[union-attr]

    n_kernels = max(1, round((kernels(9) - kernels(1)) / 8))
    value = torch.zeros(1, device="cuda")

    def work() -> None:
        for _ in range(n_kernels):
            value.add_(1.0)

    replay, best = cuda_record()(work), np.inf
    for _ in range(20):
        torch.cuda.synchronize()
        began = time.perf_counter()
        replay()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return float(best)


def read_speed(n_bytes: int, device: torch.device) -> float:
    """Bytes a second at which so many are read again and again, from whatever cache holds them: the best of sums."""
    values = torch.ones(max(1, n_bytes // 4), device=device)
    best = np.inf
    for _ in range(20):
        harness.synchronize(device)
        began = time.perf_counter()
        values.sum()
        harness.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return n_bytes / best


def sessions(size: str, device: torch.device, *, threads: int, n: int) -> Iterator[Row]:
    """Turns and encoders of a size."""
    common = {"op": "infer", "size": size, "threads": threads, "model": True}
    behind = f", {threads} threads" if threads else ""
    if threads:
        torch.set_num_threads(threads)
    for weights in ("float32", "int8") if device.type == "cpu" else ("float32",):
        contender = f"{OURS}, {'int8' if weights == 'int8' else 'fp32'}"
        try:
            session = infer_cases.session_of(size, device, weights=weights)
            passes = {"turn": infer_cases.turns(session, n=n)}
            if weights == "float32":
                passes["encoders"] = infer_cases.encoders(session, n=n)
        except FAILURES as error:
            yield {**common, "pass": "turn", "variant": f"turn {size}{behind}", "contender": contender,
                   "status": f"failed: {first_line(error)}"}  # fmt: skip
            continue
        for name, found in passes.items():
            yield {
                **common, "pass": name, "variant": f"{name} {size}{behind}", "contender": contender, "status": "ok",
                **{f"{key}_p50": median(values) for key, values in found.items()},
                **{f"{key}_best": min(values) for key, values in found.items()},
            }  # fmt: skip


def in_memory(size: str, device: torch.device) -> Iterator[Row]:
    """Memory of a session in a process of its own."""
    row = {
        "op": "infer",
        "pass": "memory",
        "variant": f"memory {size}",
        "size": size,
        "threads": 0,
        "model": True,
    }
    for weights in ("float32", "int8") if device.type == "cpu" else ("float32",):
        command = [
            sys.executable,
            "-m",
            "benchmarks.bench_infer",
            "--device",
            device.type,
            "--memory",
            size,
            weights,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        contender = f"{OURS}, {'int8' if weights == 'int8' else 'fp32'}"
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            yield {**row, "contender": contender, "status": f"failed: {reason}"}
        else:
            yield {**row, "contender": contender, "status": "ok", **json.loads(done.stdout.splitlines()[-1])}


def _machine(device: torch.device) -> dict[str, str]:
    name = processor() if device.type == "cpu" else provenance.device_name("cuda")
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "processor": name,
        "transformers": provenance.version("transformers"),
        "load": load,
        "kind": device.type,
    }


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_infer", description=__doc__)
    parser.add_argument(
        "--device", default=None, choices=("cuda", "cpu"), help="default: CUDA if there is one"
    )
    parser.add_argument("--sizes", default=None, help="comma-separated; default: nano,tiny,start,base")
    parser.add_argument("--only", default="decode,sessions,memory", help="comma-separated")
    parser.add_argument("--peer", action="append", default=[], help="path/to/adapter.py:function")
    parser.add_argument("--quick", action="store_true", help="tiny and the starting size, few rounds")
    parser.add_argument("--smoke", action="store_true", help="seconds, nano: not a result")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no case is begun after that")
    parser.add_argument(
        "--rows", type=Path, default=None, help="add rows to this file and write nothing else"
    )
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results/<run>")
    parser.add_argument("--command", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench_infer: no CUDA device; --device cpu measures the CPU")
        return 2
    if arguments.memory:
        print(json.dumps(infer_cases.memory(arguments.memory[0], device, weights=arguments.memory[1])))
        return 0
    try:
        for spec in arguments.peer:
            load_adapter(spec)
    except UserError as error:
        print(f"bench_infer: {error}", file=sys.stderr)
        return 2
    default = "nano" if arguments.smoke else f"tiny,{START}" if arguments.quick else f"nano,tiny,{START},base"
    sizes = (arguments.sizes or default).split(",")
    about = provenance.describe(device.type, arguments.command) | _machine(device)
    about |= {"note": harness.SMOKE} if arguments.smoke and device.type == "cpu" else {}
    rounds, seconds, n_turns = (
        (3, 0.0, 1) if arguments.smoke else (6, 10.0, 5) if arguments.quick else (30, 30.0, 15)
    )
    log = Log(arguments.rows, about) if arguments.rows else None
    rows: list[Row] = []

    def work() -> Iterator[Iterator[Row]]:
        if "sessions" in arguments.only:
            for size in sizes:
                for threads in (0,) if device.type == "cuda" else (1,) if arguments.smoke else (1, 2):
                    if size != START:
                        yield sessions(size, device, threads=threads, n=n_turns)
        if "decode" in arguments.only:
            for case in decode_cases(sizes, device, smoke=arguments.smoke):
                yield timed(case, device, peers=arguments.peer, rounds=rounds, seconds=seconds)
        if "memory" in arguments.only:
            for size in sizes:
                if size != START:
                    yield in_memory(size, device)

    began = time.monotonic()
    for found in work():
        if time.monotonic() - began > arguments.seconds:
            print("out of time")
            break
        for row in found:
            rows.append(row)
            print(infer_report.line(row), flush=True)
            if log:
                log.add(row)
    if log:
        return 0
    name = f"{about['date']}_infer-{provenance.slug(about['processor'])}_{provenance.slug(about['commit'])}"
    out = arguments.out or provenance.ROOT / "benchmarks" / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    text = infer_report.summary(rows, about)
    (out / "rows.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    (out / "summary.md").write_text(text)
    print(text)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
