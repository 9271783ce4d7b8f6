"""The one way to time: CUDA-graph replays of cold calls, contenders in turn, percentiles; wall-clock time on a CPU.

A replay holds many calls in a row, each on the next of several input sets that together exceed the L2 cache three times
over, and results are kept so that outputs rotate too: every call finds its inputs cold, as in a training step, where
other layers ran in between. Rotating was chosen over flushing the cache inside the graph and subtracting the flush:
the difference of two times hundreds of times the kernel's own is noise at these sizes, and a kernel's last writes would
be billed to the flush. Before each replay a buffer larger than L2 is written, so that the first call is cold as well
and the GPU is busy while the host enqueues the replay: launch latency is not in the numbers. All contenders read the
same inputs and are replayed in turn, in rotating order, within one run.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

SMOKE = "CPU, smoke run, not a result"
COLD_FACTOR = 3
"""Input sets of a replay exceed L2 this many times."""
REPLAY_BYTES = 512 * 2**20
"""A replay moves at least this much, so that it takes longer than its launch."""
MAX_CALLS = 512
"""Most calls in one replay."""


class WaitsError(RuntimeError):
    """A contender waits for the device, so it cannot be captured into a CUDA graph."""


class BrokenCaptureError(RuntimeError):
    """A capture failed halfway. PyTorch's allocator may stay in its capturing state: the process must end."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a case is timed on one device."""

    device: torch.device
    n_sets: int
    """Input sets."""
    n_calls: int
    """Calls in one replay."""
    rounds: int
    """Replays of each contender, at most."""
    seconds: float
    """For one pass of one case, all contenders together; at least five rounds are done."""


def plan(device: torch.device, n_bytes: int, *, rounds: int, seconds: float) -> Plan:
    """The plan of a case whose cheapest pass moves n_bytes a call."""
    if device.type != "cuda":
        return Plan(device=device, n_sets=2, n_calls=2, rounds=min(rounds, 5), seconds=seconds)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    n_sets = min(MAX_CALLS, -(-COLD_FACTOR * cache // max(1, n_bytes)))
    n_calls = min(MAX_CALLS, max(n_sets, -(-REPLAY_BYTES // max(1, n_bytes))))
    return Plan(device=device, n_sets=n_sets, n_calls=n_calls, rounds=rounds, seconds=seconds)


@dataclass(kw_only=True)
class Replay:
    """Something that can be timed as a whole."""

    start: Callable[[], Any]
    n_calls: int
    keep: list[Any] = field(default_factory=list)
    """What its memory belongs to."""


def prepare(call: Callable[[int], Any], plan: Plan) -> Replay:
    """Warm a call up and make a replay of it; call(i) works on input set i.

    Raises WaitsError, before anything is captured, when it waits for the device; BrokenCaptureError when the capture
    fails; whatever the call raises.
    """
    if plan.device.type != "cuda":
        for i in range(plan.n_sets):
            call(i)

        def run() -> None:
            for i in range(plan.n_calls):
                call(i % plan.n_sets)

        return Replay(start=run, n_calls=plan.n_calls)
    stream = capture_stream(plan.device)
    stream.wait_stream(torch.cuda.current_stream(plan.device))
    results: list[Any] = [None] * plan.n_sets
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for i in range(min(3, plan.n_sets)):
            call(i)
        stream.synchronize()
        _demand_no_wait(call)
        # A collection inside the capture could destroy an older graph, which is not allowed there.
        gc.disable()
        try:
            graph.capture_begin()
            try:
                for i in range(plan.n_calls):
                    results[i % plan.n_sets] = call(i % plan.n_sets)
            finally:
                graph.capture_end()
        except RuntimeError as error:
            raise BrokenCaptureError((str(error).strip() or "no message").splitlines()[0]) from error
        finally:
            gc.enable()
    graph.replay()
    torch.cuda.synchronize(plan.device)
    return Replay(start=graph.replay, n_calls=plan.n_calls, keep=[graph, results])


def _demand_no_wait(call: Callable[[int], Any]) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(0)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise WaitsError("waits for the device: " + (str(error).strip() or "?").splitlines()[0]) from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


_streams: dict[torch.device, torch.cuda.Stream] = {}


def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that forwards run and graphs are captured on: a backward must follow its forward's stream."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def interleave(replays: dict[str, Replay], plan: Plan) -> dict[str, list[float]]:
    """Microseconds a call of every replay, one value a round; the order rotates from round to round."""
    names = list(replays)
    times: dict[str, list[float]] = {name: [] for name in names}
    if not names:
        return times
    flush = None
    if plan.device.type == "cuda":
        cache = torch.cuda.get_device_properties(plan.device).L2_cache_size
        flush = torch.empty(4 * cache, dtype=torch.uint8, device=plan.device)
    began = time.perf_counter()
    for turn in range(plan.rounds):
        if turn >= 5 and time.perf_counter() - began > plan.seconds:
            break
        first = turn % len(names)
        order = names[first:] + names[:first]
        for name, us in zip(order, _round([replays[n] for n in order], flush), strict=True):
            times[name].append(us)
    return times


def _round(replays: Sequence[Replay], flush: torch.Tensor | None) -> list[float]:
    """One replay of each, microseconds a call."""
    if flush is None:
        found = []
        for replay in replays:
            began = time.perf_counter()
            replay.start()
            found.append((time.perf_counter() - began) * 1e6 / replay.n_calls)
        return found
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in replays]
    # Not timed: keeps the GPU busy until the first launches are enqueued; from then on the host is ahead of it.
    replays[0].start()
    for replay, (before, after) in zip(replays, marks, strict=True):
        flush.zero_()
        before.record()
        replay.start()
        after.record()
    torch.cuda.synchronize(flush.device)
    return [
        before.elapsed_time(after) * 1e3 / replay.n_calls
        for replay, (before, after) in zip(replays, marks, strict=True)
    ]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80 by nearest rank."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {f"p{p}": round(ordered[round(last * p / 100)], 4) for p in (20, 50, 80)}


def copy_replay(n_bytes: int, plan: Plan) -> Replay:
    """The yardstick: `copy_` of half of n_bytes, which reads and writes n_bytes together, equally cold."""
    half = max(16, n_bytes // 2)
    pairs = [
        [torch.ones(half, dtype=torch.uint8, device=plan.device) for _ in range(2)]
        for _ in range(plan.n_sets)
    ]
    return prepare(lambda i: pairs[i][1].copy_(pairs[i][0]), plan)


def host_time(call: Callable[[], Any], device: torch.device, *, n: int = 200, repeats: int = 5) -> float:
    """Microseconds of CPU time a call takes to enqueue: the best of several loops that wait for no result.

    The call must work on tiny tensors, or the queue fills and the GPU's time is measured.
    """
    if device.type != "cuda":
        n, repeats = 3, 1
    for _ in range(3):
        call()
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(n):
            call()
        best = min(best, (time.perf_counter() - began) * 1e6 / n)
    synchronize(device)
    return round(best, 2)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Most device memory held at one time during a call beyond what was held before it; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def free_bytes(device: torch.device) -> int | None:
    """Device memory that can still be allocated, what the allocator holds unused included; None on a CPU."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def synchronize(device: torch.device) -> None:
    """Wait for a CUDA device; nothing elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
