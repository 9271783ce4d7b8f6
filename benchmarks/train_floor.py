"""The floor of a training step: matrix products counted, bytes that must move, and how fast this device does both.

Products are those of the model, not of an implementation: of each linear layer forward, for its input and for its
weight, of the head, and of the pairs of positions that attention must look at, without what a causal mask hides. Bytes
are what the steps between the products move at least, and the optimizer; products move none. So the floor is a little
too low, but on a CPU, whose caches may hold what a small batch moves, a little too high.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks import harness
from muomni.config import RunConfig
from muomni.nn.attention import Attention
from muomni.nn.block import Block
from muomni.nn.conv import CausalMix
from muomni.nn.moe import FeedForward
from muomni.nn.norm import RMSNorm
from muomni.train import flops as step_flops
from muomni.train import plan
from muomni.train.stages import stage as make_stage

OPTIMIZER_BYTES = 32
"""A trained number: its gradient read for the norm; AdamW reads weight, gradient and two moments and writes three."""
SIZES = {"cuda": (8_192, 2**30), "cpu": (1_024, 2**28)}
"""Rows and columns of the product, bytes of the copy (read and written together), by device."""


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What this device reaches."""

    flops: float
    """Floating-point operations a second of a large product."""
    bandwidth: float
    """Bytes a second, read and written, of a large copy."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step of one batch cannot do without."""

    flops: float
    """Of matrix products, attention's among them."""
    numbers: float
    """Activations moved between products."""
    trained: int
    """Parameters that are updated."""

    def bytes(self, *, half: bool) -> float:
        """Least bytes; half: activations of two bytes."""
        return self.numbers * (2 if half else 4) + self.trained * OPTIMIZER_BYTES

    def seconds(self, yardstick: Yardstick, *, half: bool) -> float:
        """The floor."""
        return self.flops / yardstick.flops + self.bytes(half=half) / yardstick.bandwidth

    def scaled(self, factor: float) -> Work:
        """Of a batch so many times as large."""
        return Work(flops=self.flops * factor, numbers=self.numbers * factor, trained=self.trained)


def yardstick(device: torch.device, *, half: bool, seconds: float = 1.0) -> Yardstick:
    """The best of several products at a precision and of several copies."""
    size, n_bytes = SIZES[device.type]
    # Of equal numbers a GPU draws less power and clocks higher.
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if half else torch.float32)
    b, out = a.clone(), torch.empty_like(a)
    source = torch.ones(n_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _best(lambda: torch.mm(a, b, out=out), device, seconds)
    copy = _best(lambda: target.copy_(source), device, seconds)
    return Yardstick(flops=2 * size**3 / product, bandwidth=n_bytes / copy)


def _best(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of at least four calls, on a CPU of its own time: others use it too."""
    clock, threads = (
        (time.perf_counter, 1) if device.type == "cuda" else (time.process_time, torch.get_num_threads())
    )
    call()
    best, began, n = float("inf"), time.perf_counter(), 0
    while n < 4 or time.perf_counter() - began < seconds:
        harness.synchronize(device)
        start = clock()
        call()
        harness.synchronize(device)
        best, n = min(best, (clock() - start) / threads), n + 1
    return best


def count(run: RunConfig, batch: Any = None) -> Work:
    """The work of a step, counted in one forward on the CPU, as the loop counts it for its MFU.

    batch: of the stage, on the CPU; None for the stage's full batch, counted on its smallest unit and scaled.
    """
    n = run.train.batch_items if run.stage == "vision" else run.train.batch_tokens
    if batch is None:
        unit = plan.unit_of(run)
        small = plan.scaled(run, unit)
        return count(small, plan.full_batch(make_stage(small), small)).scaled(n / unit)
    stage, model = make_stage(run), plan.stage_model(run)
    stage.set_mode(model)
    found = _Numbers()
    with _watched(model, found):
        flops = step_flops.count(stage, model, batch).total
    trained = sum(p.numel() for p in stage.parameters(model, stage.phases[0]).values())
    return Work(flops=flops, numbers=found.total, trained=trained)


def figures(
    times: Sequence[tuple[float, float]], *, positions: int, fill: float | None, work: Work, yard: Yardstick,
    half: bool, own_time: bool, n_batches: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """A row's numbers from (wall, CPU) microseconds a step.

    fill: share of the positions that is no padding, None where unknown. Speeds are those of the median. own_time: MFU
    and floor take CPU time over threads, what a step would take alone on a CPU that others use too. n_batches: rounds
    go through so many batches in turn; `min` and medians are means over them: the cheapest must not stand for all.
    """
    walls, cpus = [t[0] for t in times], [t[1] for t in times]
    (wall, best), (cpu, best_cpu) = _over_batches(walls, n_batches), _over_batches(cpus, n_batches)
    alone, quickest = wall, best
    if own_time:
        alone, quickest = cpu / torch.get_num_threads(), best_cpu / torch.get_num_threads()
    floor = work.seconds(yard, half=half) * 1e6
    return {
        **harness.percentiles(walls), "p50": round(wall, 4), "min": round(best, 4), "cpu_p50": cpu, "cpu_min": best_cpu,
        "n_rounds": len(times),
        "tokens_per_s": positions / wall * 1e6, "tokens_per_cpu_s": positions / cpu * 1e6, "fill": fill,
        "useful_per_s": None if fill is None else positions * fill / wall * 1e6,
        "useful_per_cpu_s": None if fill is None else positions * fill / cpu * 1e6,
        "flops": work.flops, "bytes": work.bytes(half=half), "yard_tflops": yard.flops / 1e12,
        "yard_gb_per_s": yard.bandwidth / 1e9, "mfu": work.flops / (alone / 1e6) / yard.flops,
        "floor": floor, "over_floor": alone / floor, "over_floor_min": quickest / floor,
    }  # fmt: skip


def _over_batches(times: Sequence[float], n: int) -> tuple[float, float]:
    """Means over n batches, which take turns, of each one's median and of its best time."""
    groups = [times[i::n] for i in range(min(n, len(times)))]
    return sum(median(g) for g in groups) / len(groups), sum(min(g) for g in groups) / len(groups)


@dataclass
class _Numbers:
    total: float = 0.0


@contextmanager
def _watched(model: nn.Module, found: _Numbers) -> Iterator[None]:
    """Layers that run inside add the numbers they move."""
    with ExitStack() as stack:
        for module in model.modules():
            numbers = _numbers(module)
            if numbers is not None:
                stack.callback(module.register_forward_hook(_adder(found, *numbers)).remove)
        yield


def _numbers(module: nn.Module) -> tuple[int, int] | None:
    """Numbers moved for one row by what a layer does between products, forward and backward; None for no such layer."""
    if isinstance(module, Block):
        # Norms joined with additions.
        width, n_norms = module.ff_norm.weight.numel(), 2 if module.conv is None else 3
        taps = (2 * width, 3 * width) if module.conv is not None else (0, 0)
        return 4 * width * n_norms + taps[0], 4 * width * n_norms + taps[1]
    if isinstance(module, Attention):
        # The split with norms and rotation; then queries, keys, values and results, and in the backward all gradients.
        packed, own = module.qkv.out_features, (module.n_heads + module.n_kv_heads) * module.head_dim
        # Late keys are copied, and so are their gradients.
        late = 2 * module.n_kv_heads * module.head_dim if module.late_keys else 0
        return 2 * packed + 2 * own + late, 3 * packed + 4 * own + late
    if isinstance(module, FeedForward):
        return 3 * module.down.in_features, 5 * module.down.in_features
    if isinstance(module, (RMSNorm, CausalMix)):
        # Of a mix the rows before are at hand.
        width = module.weight.shape[-1]
        return 2 * width, 3 * width
    return None


def _adder(found: _Numbers, forward: int, backward: int) -> Callable[..., None]:
    def add(module: nn.Module, arguments: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        rows = first.numel() // first.shape[-1]
        found.total += rows * (forward + (backward if first.requires_grad else 0))

    return add
