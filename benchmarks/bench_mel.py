"""The audio front end against everybody else's, on a CPU: wall-clock and CPU time, memory, agreement, gates.

pytest-benchmark times one function after another; on a shared machine the minutes between two of them decide. Here all
contenders of a case are called in turn, in a new order every round, in one process with one thread each.
Memory is the growth of the peak resident set in the first call on the batch, after one on two short clips and with
freed memory given back, each contender in a process of its own. After a call on the same batch the allocator would
still hold its memory, and the growth could be less than the result.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from muomni_kernels import log_mel, log_mel_downsample, mel_downsample

from benchmarks import mel_floor, mel_report, provenance
from benchmarks.mel_peers import PEERS, Clips, Peer, torch_log_mel
from muomni.data import embedded

Row = dict[str, Any]
RATE, HOP = 16_000, 160
POOL = 8
AGREES = 0.7
"""Least correlation of log-mels, each band around its mean over time, of two that compute the same; windows of another
length, or frames a fraction of a hop apart, cost some."""
SECONDS = 20.0
"""For the rounds of one case, all contenders together; at least three rounds are done."""


def speech_like(n_samples: int, seed: int) -> np.ndarray:
    """A gliding tone under a slow envelope with noise: (n_samples,) float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_samples) / RATE
    tone = np.sin(2 * np.pi * (150 + 40 * (seed % 7) + 90 * np.sin(t)) * t) * (1 + np.sin(5 * t))
    return (0.2 * tone + 0.02 * rng.normal(size=n_samples)).astype(np.float32)


def case_clips(case: str) -> Clips:
    """The clips of a case."""
    rng = np.random.default_rng(4)
    if case == "30 s":
        return speech_like(30 * RATE, 0)[None]
    if case == "64 x 10 s":
        return np.stack([speech_like(10 * RATE, seed) for seed in range(64)])
    if case == "smoke":
        return np.stack([speech_like(RATE, seed) for seed in range(2)])
    n, longest = (64, 24) if case == "64 ragged" else (1_024, 15)
    return [speech_like(int(size), i) for i, size in enumerate(rng.integers(RATE, longest * RATE, n))]


CASES = ("30 s", "64 x 10 s", "64 ragged", "1024 ragged")


def flat(clips: Clips) -> tuple[np.ndarray, dict[str, Any]]:
    """What our ops take: a batch, or clips end to end and their offsets."""
    if isinstance(clips, np.ndarray):
        return clips, {}
    return np.concatenate(clips), {"cu_samples": np.cumsum([0, *map(len, clips)])}


def ours(clips: Clips) -> dict[str, Callable[[], Any]]:
    """Our ops as a user calls them: memory for the result is allocated."""
    wave, cu = flat(clips)
    samples = (wave * 32_767).astype(np.int16)
    whisper: dict[str, Any] = {"padding": "reflect", "log": "whisper"}
    half: dict[str, Any] = {"dtype": torch.bfloat16}
    return {
        "log_mel": lambda: log_mel(wave, n_threads=1, **cu),
        "log_mel, int16": lambda: log_mel(samples, n_threads=1, **cu),
        "log_mel, Whisper's scale": lambda: log_mel(wave, n_threads=1, **whisper, **cu),
        "log_mel_downsample, stack": lambda: log_mel_downsample(wave, n_threads=1, **cu),
        "log_mel_downsample, stack, bf16": lambda: log_mel_downsample(wave, n_threads=1, **half, **cu),
        "log_mel_downsample, mean": lambda: log_mel_downsample(wave, mode="mean", n_threads=1, **cu),
        "log_mel, 2 threads": lambda: log_mel(wave, n_threads=2, **cu),
        "log_mel_downsample, stack, 2 threads": lambda: log_mel_downsample(wave, n_threads=2, **cu),
        "log_mel_downsample, mean, 2 threads": lambda: log_mel_downsample(
            wave, mode="mean", n_threads=2, **cu
        ),
    }


def agreement(found: Any, expected: torch.Tensor, *, same_bands: bool = True) -> float:
    """Correlation of two (n_frames, n_mels) log-mels around each band's mean, at the best shift of two frames.

    same_bands: whether band is compared with band, else the means over bands.
    """
    a, b = np.asarray(found, np.float64), expected.double().numpy()
    if not same_bands:
        a, b = a.mean(1, keepdims=True), b.mean(1, keepdims=True)
    n, best = min(len(a), len(b)) - 8, -1.0
    for shift in range(-2, 3):
        p, q = a[4 + shift : 4 + shift + n], b[4 : 4 + n]
        p, q = p - p.mean(0), q - q.mean(0)
        best = max(best, float((p * q).sum() / np.sqrt((p * p).sum() * (q * q).sum())))
    return best


def prepare(peer: Peer) -> tuple[Callable[[Clips], Sequence[Any]] | None, float, str]:
    """A peer's function, its agreement with ours on a clip, and why it cannot be timed."""
    try:
        run = peer.make()
    except (ImportError, OSError) as error:
        return None, 0.0, f"not installed or not loadable: {str(error).splitlines()[0]}"
    clip = speech_like(4 * RATE, 1)
    expected = log_mel(clip, padding="reflect", log="whisper" if peer.convention == "whisper" else "ln")
    agrees = agreement(run(clip[None])[0], expected, same_bands=peer.same_bands)
    return (run, agrees, "") if agrees >= AGREES else (None, agrees, "computes something else")


def misshapen(found: Sequence[Any], clips: Clips, n_mels: Sequence[int] = (80, 128)) -> str:
    """What is wrong with a peer's (n_frames, n_mels) for each clip, or nothing: padding differs by three frames."""
    if len(found) != len(clips):
        return f"{len(found)} results for {len(clips)} clips"
    for index, (frames, clip) in enumerate(zip(found, clips, strict=True)):
        if abs(frames.shape[0] - len(clip) / HOP) > 3 or frames.shape[1] not in n_mels:
            return f"clip {index} of {len(clip)} samples became {tuple(frames.shape)}"
    return ""


def interleave(
    calls: dict[str, Callable[[], Any]], seconds: float, wrong: Callable[[str, Any], str] | None = None
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, str]]:
    """(wall, CPU) seconds of every call, round after round in a new order; the first round only warms up.

    wrong: what is wrong with a call's result, looked at in the first round; such a call is not timed.
    Returns the times, and by name what was wrong.
    A new order, not a rotating one: what ran just before leaves the caches and the allocator in its own way.
    """
    names, times, rng = list(calls), {name: [] for name in calls}, np.random.default_rng(0)
    faults: dict[str, str] = {}
    began, turn = time.perf_counter(), 0
    while turn < 4 or (time.perf_counter() - began < seconds and turn < 40):
        for name in rng.permutation(names):
            gc.disable()
            cpu, wall = time.process_time(), time.perf_counter()
            result = calls[name]()
            elapsed = (time.perf_counter() - wall, time.process_time() - cpu)
            gc.enable()
            if turn:
                times[name].append(elapsed)
            elif wrong is not None and (fault := wrong(name, result)):
                faults[name] = fault
            del result
        names = [name for name in names if name not in faults]
        turn += 1
    return {name: times[name] for name in names}, faults


def row(case: str, name: str, seconds: float | None, times: list[tuple[float, float]], **more: Any) -> Row:
    """One line of the result; times in milliseconds.

    seconds: of audio, for `x_real_time` by the clock and `x_real_time_core` by the CPU time of all threads.
    """
    walls, cpus = [t[0] for t in times], [t[1] for t in times]
    found = {
        "case": case, "contender": name, "rounds": len(times),
        "wall_ms_min": min(walls) * 1e3, "wall_ms_median": median(walls) * 1e3, "cpu_ms_min": min(cpus) * 1e3, **more,
    }  # fmt: skip
    if seconds is not None:
        speed = {"x_real_time": seconds / min(walls), "x_real_time_core": seconds / min(cpus)}
        found |= {"audio_s": round(seconds, 2), **speed}
    return found


def time_case(case: str, seconds: float, peers: Sequence[Peer]) -> list[Row]:
    """All contenders of one case."""
    clips = case_clips(case)
    length = sum(map(len, clips)) / RATE
    calls, about = ours(clips), {}
    pooled = torch_log_mel(pool=POOL)
    calls[mel_report.COMPOSITION] = lambda: pooled(clips)
    skipped: list[Row] = []
    for peer in peers:
        run, agrees, why = prepare(peer)
        about[peer.name] = {
            "package": peer.package,
            "version": provenance.version(peer.package),
            "agreement": agrees,
            "note": peer.note,
        }
        if run is None:
            skipped.append({"case": case, "contender": peer.name, "status": why, **about[peer.name]})
        else:
            calls[peer.name] = functools.partial(run, clips)
    times, faults = interleave(
        calls, seconds, lambda name, found: misshapen(found, clips) if name in about else ""
    )
    skipped += [
        {"case": case, "contender": name, "status": why, **about[name]} for name, why in faults.items()
    ]
    return [row(case, name, length, times[name], **about.get(name, {})) for name in times] + skipped


def time_downsample(seconds: float, n_frames: int = 64_000) -> list[Row]:
    """mel_downsample alone on 32.8 MB against reading them once."""
    frames = torch.randn(n_frames, 128, generator=torch.Generator().manual_seed(0))
    calls = {
        mel_floor.READ: lambda: frames.sum(),
        "mel_downsample, mean": lambda: mel_downsample(frames, mode="mean"),
        "mel_downsample, stack": lambda: mel_downsample(frames),
        "view.mean": lambda: frames.view(-1, POOL, 128).mean(1),
    }
    times, _ = interleave(calls, seconds)
    return [row("downsample", name, None, times[name]) for name in calls]


def time_floor(seconds: float, case: str) -> list[Row]:
    """The clips of a case beside the matrix product and the reading that tell what this core can do."""
    clips, factor = case_clips(case), torch.ones(mel_floor.SIZE, mel_floor.SIZE)
    memory, own = torch.zeros(8 * 2**20), ours(clips)
    calls: dict[str, Callable[[], Any]] = {
        mel_floor.PRODUCT: lambda: factor @ factor,
        mel_floor.READ: lambda: memory.sum(),
        **{name: own[name] for name in ("log_mel", "log_mel_downsample, mean")},
    }
    times, _ = interleave(calls, seconds)
    more = {"n_frames": sum(map(len, clips)) // HOP, "bytes": memory.nbytes}
    return [row("floor", name, None, times[name], **more) for name in calls]


def errors(*, speech: bool) -> list[Row]:
    """Of log_mel against fp64: half a minute like speech, silence with one click; speech: the embedded set too."""
    click = np.zeros(RATE, np.float32)
    click[RATE // 2] = 1.0
    clips = {"30 s": [speech_like(30 * RATE, 0)], "click": [click]}
    if speech:
        items = embedded.SET.speech("validation")
        clips["real speech"] = [np.asarray(embedded.SET.waveform(item), np.float32) for item in items]
    return mel_floor.errors({name: [torch.from_numpy(clip) for clip in them] for name, them in clips.items()})


def memory(name: str, case: str) -> tuple[float, float]:
    """Growth of this process's peak resident set in a call, and the result's own size, MiB. Linux with glibc only.

    Raises StopIteration for another name, AttributeError and OSError on another system.
    """
    if name.startswith(mel_report.OURS):
        small, call = ours(case_clips("smoke"))[name], ours(case_clips(case))[name]
    else:
        composition = Peer(
            name=mel_report.COMPOSITION, package="torch", make=lambda: torch_log_mel(pool=POOL)
        )
        run = next(peer for peer in (*PEERS, composition) if peer.name == name).make()
        small = functools.partial(run, case_clips("smoke"))
        call = functools.partial(run, case_clips(case))
    # What is loaded or built at the first call is not the batch's.
    small()
    gc.collect()
    # Freed memory that the allocator keeps would be used again without growth.
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result = call()
    parts = [result] if isinstance(result, torch.Tensor) else result
    return (_status("VmHWM") - before) / 1024, sum(part.nbytes for part in parts) / 2**20


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure_memory(rows: list[Row], case: str) -> None:
    """Adds peak_mib and result_mib to the rows of a case, each from a process of its own; says of which it cannot."""
    for found in rows:
        if found["case"] == case and "wall_ms_min" in found:
            command = [sys.executable, "-m", "benchmarks.bench_mel", "--memory", found["contender"], case]
            done = subprocess.run(command, text=True, capture_output=True, check=False)
            if done.returncode == 0:
                found["peak_mib"], found["result_mib"] = map(float, done.stdout.split()[-2:])
            else:
                found["memory_status"] = (done.stderr.strip().splitlines() or ["no output"])[-1]
                print(f"memory of {found['contender']}: {found['memory_status']}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Times, writes, prints."""
    parser = argparse.ArgumentParser(prog="benchmarks.bench_mel", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two cases, few rounds, no memory")
    parser.add_argument("--smoke", action="store_true", help="seconds, PyTorch alone: not a result")
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results/<run>")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.memory:
        print(*memory(*arguments.memory))
        return 0
    if any(
        os.environ.get(name) != "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    ):
        print(
            "bench_mel: set OMP_NUM_THREADS, MKL_NUM_THREADS and OPENBLAS_NUM_THREADS to 1", file=sys.stderr
        )
        return 2
    about = provenance.describe("cpu") | {"processor": mel_report.processor()}
    if arguments.smoke:
        rows = time_case("smoke", 0.1, PEERS[:1]) + time_downsample(0.1, 512) + time_floor(0.1, "smoke")
    else:
        cases = CASES[:2] if arguments.quick else CASES
        rows = [r for case in cases for r in time_case(case, SECONDS / (4 if arguments.quick else 1), PEERS)]
        rows += time_downsample(3.0) + time_floor(3.0, "64 x 10 s")
        if not arguments.quick:
            measure_memory(rows, "64 x 10 s")
    rows += errors(speech=not arguments.smoke)
    name = f"{about['date']}_{provenance.slug('mel ' + about['processor'])}_{about['commit']}"
    out = arguments.out or provenance.ROOT / "benchmarks" / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    summary = mel_report.summary(rows, about)
    (out / "rows.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    (out / "summary.md").write_text(summary)
    (out / "mel.svg").write_text(mel_report.plot(rows))
    print(summary)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
