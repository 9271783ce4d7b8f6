"""One case measured: every contender checked, then timed beside the others; the result as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import AGAIN, harness
from benchmarks.case import (
    Case,
    Contender,
    Inputs,
    NotRun,
    Truth,
    differentiable,
    floats,
    incoming,
    leaves,
    run_both,
    truth_of,
)

Row = dict[str, Any]

try:
    from triton.errors import TritonError
except ImportError:
    _OF_TRITON: tuple[type[Exception], ...] = ()
else:
    _OF_TRITON = (TritonError,)

FAILURES = (
    RuntimeError, ValueError, TypeError, AttributeError, ImportError, AssertionError, LookupError, ArithmeticError,
    *_OF_TRITON,
)  # fmt: skip
"""What a contender may raise that is its own failure and no reason to leave the others out: other libraries assert and
look things up, Triton has errors of its own, and an out-of-memory error is a RuntimeError, as are a backend that cannot
run and whatever torch.compile raises."""


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"[:300]


def row(case: Case, contender: str, stage: str, status: str, **values: Any) -> Row:
    """A row of the results; the caller adds where and when."""
    return {
        "op": case.op,
        "variant": case.variant,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "model": case.model,
        "rows": case.rows,
        "width": case.width,
        "pass": stage,
        "contender": contender,
        "status": status,
        **values,
    }


def check(case: Case, contender: Contender, inputs: Inputs, truth: Truth | None) -> str | None:
    """None when a contender's outputs and gradients are right, else what is wrong."""
    arguments = leaves(case, inputs)
    with contender.scope():
        if case.judge is None:
            assert truth is not None
            return truth.fault(case, contender, arguments)
        if not case.n_grads:
            return case.judge(inputs, contender.call(*arguments))
        with torch.no_grad():
            outputs = floats(contender.call(*arguments))
        dys = [torch.ones_like(y) for y in outputs]
        return case.judge(inputs, run_both(case, contender, arguments, dys))


def sound(case: Case, wanted: set[str] | None = None) -> tuple[dict[str, Contender], list[Row]]:
    """The contenders that run and compute the op, and rows for the others."""
    inputs = case.make(0)
    rows: list[Row] = []
    truth: Truth | None = None
    if case.judge is None:
        try:
            truth = truth_of(case, inputs)
        except torch.OutOfMemoryError:
            return {}, [
                row(case, "all", "all", "not run: the reference does not fit the memory in fp32 either")
            ]
    found: dict[str, Contender] = {}
    for name, make in case.contenders.items():
        if wanted is not None and name not in wanted:
            continue
        try:
            contender = make()
            fault = check(case, contender, inputs, truth)
        except NotRun as reason:
            rows.append(row(case, name, "all", f"not run: {reason}"))
        except FAILURES as error:
            rows.append(row(case, name, "all", f"failed: {first_line(error)}"))
        else:
            if fault is None:
                found[name] = contender
            else:
                rows.append(row(case, name, "all", f"wrong: {fault}"))
    return found, rows


def calls(
    case: Case,
    contender: Contender,
    sets: list[Inputs],
    dys: list[list[torch.Tensor]],
    stage: str,
    stream: Any,
) -> Callable[[int], Any]:
    """The function of an input set's number that a pass times."""
    n = case.n_grads
    if stage == "forward":

        def forward(i: int) -> Any:
            with contender.scope():
                return contender.call(*sets[i])

        return forward

    def outputs(i: int) -> tuple[torch.Tensor, ...]:
        return differentiable(floats(contender.call(*sets[i])))

    def matching(ys: tuple[torch.Tensor, ...], i: int) -> list[torch.Tensor]:
        return [dy.to(y.dtype) for dy, y in zip(dys[i], ys, strict=False)]

    if stage == "both":

        def both(i: int) -> Any:
            with contender.scope():
                ys = outputs(i)
                return torch.autograd.grad(ys, sets[i][:n], matching(ys, i))

        return both
    with contender.scope(), torch.cuda.stream(stream):
        saved = [outputs(i) for i in range(len(sets))]

    def backward(i: int) -> Any:
        return torch.autograd.grad(saved[i], sets[i][:n], matching(saved[i], i), retain_graph=True)

    return backward


def _seeds(case: Case, n_sets: int) -> tuple[list[Inputs], list[list[torch.Tensor]]]:
    """Input sets, and incoming gradients for each of them."""
    sets = [leaves(case, case.make(10 * i)) for i in range(n_sets)]
    if not case.n_grads:
        return sets, [[] for _ in sets]
    reference = case.contenders["reference"]()
    with reference.scope():
        first = incoming(case, differentiable(floats(reference.call(*sets[0]))))
    return sets, [[dy.clone() for dy in first] for _ in sets]


def measure(
    case: Case, *, rounds: int, seconds: float, wanted: set[str] | None, host: dict[str, dict[str, float]]
) -> Iterator[Row]:
    """Rows of a case: a contender that is wrong is reported as wrong and not timed.

    Raises BrokenCaptureError after the row that says so: nothing more can be timed in this process.
    rounds, seconds: limits of one pass; wanted: contenders, None for all; host: microseconds by contender and pass.
    """
    device = case.make(0)[0].device
    found, rows = sound(case, wanted)
    yield from rows
    if not found:
        return
    plan = harness.plan(device, min(case.n_bytes.values()), rounds=rounds, seconds=seconds)
    try:
        sets, dys = _seeds(case, plan.n_sets)
    except torch.OutOfMemoryError:
        yield row(case, "all", "all", "not run: the input sets do not fit the memory")
        return
    peaks = {name: _peak(case, contender, sets[0], dys[0]) for name, contender in found.items()}
    ours = next((name for name, contender in found.items() if contender.backend), None)
    for stage in case.passes:
        replays: dict[str, harness.Replay] = {}
        for name, contender in found.items():
            # The same version twice: the difference of the two is noise, and so is any smaller one.
            for entry in (name, name + AGAIN) if name == ours else (name,):
                need, free = (peaks[name] or 0) * plan.n_sets, harness.free_bytes(device)
                if free is not None and need > 0.8 * free:
                    yield row(case, entry, stage, f"not timed: needs about {need / 1e9:.0f} GB")
                    continue
                try:
                    stream = harness.capture_stream(device) if device.type == "cuda" else None
                    call = calls(case, contender, sets, dys, stage, stream)
                    replays[entry] = harness.prepare(call, plan)
                except harness.BrokenCaptureError as error:
                    yield row(case, entry, stage, f"not timed: {first_line(error)}")
                    raise
                except FAILURES as error:
                    yield row(case, entry, stage, f"not timed: {first_line(error)}")
        yield from _timed(case, stage, replays, _yardsticks(case, stage, sets, plan), plan, peaks, host)
        del replays


def _yardsticks(case: Case, stage: str, sets: list[Inputs], plan: harness.Plan) -> dict[str, harness.Replay]:
    found: dict[str, harness.Replay] = {}
    makers: dict[str, Callable[[], harness.Replay]] = {
        "copy": lambda: harness.copy_replay(case.n_bytes[stage], plan)
    }
    for name, function in case.yardsticks.items():
        plain = [[t.detach() if isinstance(t, torch.Tensor) else t for t in inputs] for inputs in sets]
        makers[name] = lambda f=function, p=plain: harness.prepare(lambda i: f(*p[i]), plan)
    for name, make in makers.items():
        try:
            found[name] = make()
        except torch.OutOfMemoryError:
            continue
    return found


def _timed(
    case: Case,
    stage: str,
    replays: dict[str, harness.Replay],
    yardsticks: dict[str, harness.Replay],
    plan: harness.Plan,
    peaks: dict[str, int | None],
    host: dict[str, dict[str, float]],
) -> Iterator[Row]:
    times = harness.interleave({**replays, **yardsticks}, plan)
    figures = {name: harness.percentiles(values) for name, values in times.items() if values}
    copy = figures.get("copy", {}).get("p50")
    for name, values in figures.items():
        again = figures.get(name + AGAIN)
        yield row(
            case,
            name,
            stage,
            "ok" if name not in yardsticks else "yardstick",
            **values,
            n_rounds=len(times[name]),
            repeat_p50=again["p50"] if again else None,
            us_host=host.get(name, {}).get(stage),
            bytes=case.n_bytes[stage],
            fraction_of_copy=round(copy / values["p50"], 4) if copy else None,
            tflops=round(case.flops[stage] / values["p50"] / 1e6, 2) if stage in case.flops else None,
            peak_bytes=peaks.get(name),
        )


def _peak(case: Case, contender: Contender, arguments: Inputs, dys: list[torch.Tensor]) -> int | None:
    def call() -> Any:
        if not case.n_grads:
            return contender.call(*arguments)
        ys = differentiable(floats(contender.call(*arguments)))
        matched = [dy.to(y.dtype) for dy, y in zip(dys, ys, strict=False)]
        return torch.autograd.grad(ys, arguments[: case.n_grads], matched)

    try:
        with contender.scope():
            return harness.peak_bytes(call, arguments[0].device)
    except torch.OutOfMemoryError:
        return None


def host_times(case: Case, wanted: set[str] | None) -> dict[str, dict[str, float]]:
    """Microseconds of host time by contender and pass, of a call on tiny tensors."""
    found, _ = sound(case, wanted)
    inputs = leaves(case, case.make(0))
    times: dict[str, dict[str, float]] = {}
    for name, contender in found.items():
        with contender.scope():
            times[name] = {
                "forward": harness.host_time(lambda c=contender: c.call(*inputs), inputs[0].device)
            }
            if not case.n_grads:
                continue
            dys = incoming(case, differentiable(floats(contender.call(*inputs))))

            def both(c: Contender = contender, dys: list[torch.Tensor] = dys) -> Any:
                ys = differentiable(floats(c.call(*inputs)))
                return torch.autograd.grad(ys, inputs[: case.n_grads], dys)

            times[name]["both"] = harness.host_time(both, inputs[0].device)
            times[name]["backward"] = round(times[name]["both"] - times[name]["forward"], 2)
    return times
