"""Everything from nothing within some minutes: each stage gets its share, and steps by what one takes here."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from muomni import files
from muomni.config import STAGES, RunConfig
from muomni.demo import curve, measure, train_stage
from muomni.doctor import commit, device_name, versions
from muomni.errors import UserError
from muomni.plot import svg_file
from muomni.recipes import Speedrun, recipe
from muomni.recipes import speedrun as plan_of
from muomni.train.built import Built
from muomni.train.checkpoint import write_json
from muomni.train.lock import only_one
from muomni.train.stage import Stage
from muomni.train.stages import stage
from muomni.train.timing import time_stage

LEDGER = "speedrun.json"
TIMED_SHARE = 0.03
"""Of a stage's seconds, how long its steps are timed."""
FEWEST_STEPS = 10
"""With fewer a stage learns nothing that a figure shows."""
SAVES = 10
"""Checkpoints of a stage: what a kill costs at most is a tenth of it."""


class SpeedrunError(UserError, RuntimeError):
    """A speedrun that cannot be begun or gone on with."""


class Ledger:
    """RUN/speedrun.json: what was asked for, and each stage's share, seconds a step, steps and seconds used.

    A run that was stopped goes on with the steps that are written here.
    """

    def __init__(
        self, root: Path, asked: Mapping[str, Any], *, clock: Callable[[], float], began: float
    ) -> None:
        """Open or begin it. began: when the call did, by the clock. Raises SpeedrunError when another run is there."""
        self._path, self.clock = root / LEDGER, clock
        self._began = began
        self.values = self._read() or {}
        other = [name for name, value in asked.items() if self.values and self.values.get(name) != value]
        if other and any("steps" in part for part in self.values["parts"].values()):
            name = other[0]
            raise SpeedrunError(
                f"{root}: holds a speedrun with --{name} {self.values.get(name)}, not {asked[name]}; "
                "give the same, or another --run."
            )
        # One that got no further than its settings, too few minutes say, is begun anew with others.
        if other or not self.values:
            if found := [name for name in STAGES if (root / name).exists()]:
                raise SpeedrunError(f"{root}: holds a stage {found[0]} of another run; choose another --run.")
            root.mkdir(parents=True, exist_ok=True)
            self.values = {
                **asked, "date": datetime.date.today().isoformat(), "device": device_name(), "commit": commit(),
                "versions": versions(), "calls": 0, "seconds": 0.0, "finished": False, "parts": {},
            }  # fmt: skip
        self._before = self.values["seconds"]
        if not self.finished:
            self.values["calls"] += 1
            self.save()

    def _read(self) -> dict[str, Any] | None:
        if not self._path.is_file():
            return None
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise SpeedrunError(f"{self._path}: not readable ({error}); choose another --run.") from error

    @property
    def finished(self) -> bool:
        """Whether all was done before: nothing more is counted."""
        return self.values["finished"]

    @property
    def seconds(self) -> float:
        """Seconds of all calls so far."""
        return self.values["seconds"] if self.finished else self._before + self.clock() - self._began

    def save(self, **changes: Any) -> None:
        """Write it, with some values changed."""
        self.values["seconds"] = round(self.seconds, 2)
        self.values |= changes
        write_json(self._path, self.values)

    @contextmanager
    def spending(self, name: str) -> Iterator[dict[str, Any]]:
        """Count the block's seconds for a part, however it ends. Yields the part's values, to be added to."""
        entry = self.values["parts"].setdefault(name, {"seconds": 0.0})
        began = self.clock()
        try:
            yield entry
        finally:
            if not self.finished:
                entry["seconds"] = round(entry["seconds"] + self.clock() - began, 2)
                self.save()


def reserved(plan: Speedrun, seconds: float) -> float:
    """Of so many seconds in all, those that no stage gets."""
    return max(plan.evaluation * seconds, plan.evaluation_seconds) + plan.slack * seconds


def stage_seconds(plan: Speedrun, name: str, *, left: float) -> float:
    """What a stage gets of the seconds left to it and the stages after it: what others left, or took, is shared."""
    names = list(plan.stages)
    rest = names[names.index(name) :]
    return left * plan.stages[name].share / sum(plan.stages[other].share for other in rest)


def run_speedrun(
    root: Path,
    *,
    size: str,
    minutes: float,
    data: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    evaluate: bool = True,
    console: Console,
    clock: Callable[[], float] = time.perf_counter,
    began: float | None = None,
) -> dict[str, Any]:
    """Train every stage within the minutes, evaluation included; what was stopped goes on, with the same steps.

    data: None takes the plan's. threads: of every stage; None takes PyTorch's, but see `processors`. began: when the
    call did, by the clock, if that was before. Writes RUN/speedrun.json, figures.json, record.json and loss.svg, beside
    the stages. Returns the record.
    Raises SpeedrunError when the minutes do not suffice or RUN holds another run, what the loop raises, and
    KeyboardInterrupt.
    """
    plan, began = plan_of(size), clock() if began is None else began
    asked = {"size": size, "minutes": minutes, "data": data or plan.data, "seed": seed}
    with only_one(root, "speedrun", main=True), _threads(threads or torch.get_num_threads()):
        ledger = Ledger(root, asked, clock=clock, began=began)
        for name in plan.stages:
            with ledger.spending(name) as entry:
                _train(plan, entry, ledger, name=name, root=root, fixed=threads is not None, console=console)
        figures: list[dict[str, Any]] = []
        if evaluate:
            with ledger.spending("evaluation"):
                figures = measure(root, console=console)["figures"]
                plots = [curve(root / name) for name in plan.stages]
                files.replace(root / "loss.svg", svg_file(plots))
            if not ledger.finished:
                ledger.save(finished=True)
        record = {k: v for k, v in ledger.values.items() if k != "finished"}
        record |= {"within": record["seconds"] <= 60 * minutes, "figures": figures}
        if evaluate:
            write_json(root / "figures.json", {"figures": figures})
            write_json(root / "record.json", record)
        return record


def processors(own: Stage, *, fixed: bool) -> tuple[int, int]:
    """Threads a stage is trained with, and train.workers: a process that makes slow batches has a core of its own.

    fixed: as many threads as PyTorch uses now, and such a process where they leave a core. Else one fewer then, if
    they are as many as cores. With a GPU both are left as they are.
    """
    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        return threads, -1
    cores = n_cores()
    if own.slow_batches and not fixed and threads >= cores > 1:
        threads = cores - 1
    return threads, int(own.slow_batches and threads < cores)


def n_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def configured(
    plan: Speedrun, name: str, asked: Mapping[str, Any], *, steps: int, workers: int = -1
) -> RunConfig:
    """The run of one stage with so many steps. workers: train.workers, which no weight depends on."""
    run = recipe(asked["size"], name)
    lr = plan.stages[name].lr
    return dataclasses.replace(
        run,
        seed=asked["seed"],
        data=asked["data"],
        train=dataclasses.replace(
            run.train, steps=steps, save_every=math.ceil(steps / SAVES), workers=workers
        ),
        optim=run.optim if lr is None else dataclasses.replace(run.optim, lr=lr),
    )


def _train(
    plan: Speedrun,
    entry: dict[str, Any],
    ledger: Ledger,
    *,
    name: str,
    root: Path,
    fixed: bool,
    console: Console,
) -> None:
    """Train a stage with the steps that its part of the ledger says, or that are chosen first and written there."""
    timed: tuple[Stage, Built] | None = None
    if "steps" not in entry:
        # What it has read by being timed it trains with.
        own = stage(
            configured(plan, name, ledger.values, steps=recipe(ledger.values["size"], name).train.steps)
        )
        threads, workers = processors(own, fixed=fixed)
        with _threads(threads):
            chosen, built = _chosen(plan, own, ledger, root=root, workers=workers)
        entry |= chosen | {"threads": threads, "workers": workers}
        timed = own, built
        ledger.save()
        console.print(
            f"{name:<10} {entry['steps']} steps of {entry['step_seconds']:.3g} s in {entry['budget_seconds']:.0f} s"
        )
    if "threads" not in entry:
        raise SpeedrunError(f"{root}: was begun by another version of muomni; choose another --run.")
    run = configured(plan, name, ledger.values, steps=entry["steps"], workers=entry["workers"])
    with _threads(entry["threads"]):
        train_stage(run, root, console=console, timed=timed)


def _chosen(
    plan: Speedrun, own: Stage, ledger: Ledger, *, root: Path, workers: int
) -> tuple[dict[str, Any], Built]:
    """A stage's steps, by timing some with a copy of its model, and what they were chosen by; and the model."""
    asked, clock, name = ledger.values, ledger.clock, own.name
    began, total = clock(), 60 * asked["minutes"]
    budget = stage_seconds(plan, name, left=total - ledger.seconds - reserved(plan, total))
    run = dataclasses.replace(own.run, train=dataclasses.replace(own.run.train, workers=workers))
    found = time_stage(own, run, root, seconds=TIMED_SHARE * max(budget, 0.0), clock=clock)
    left = budget - (clock() - began) - found.start - found.evaluation
    steps = math.floor(left / found.step)
    if steps < FEWEST_STEPS:
        raise SpeedrunError(
            f"speedrun: {asked['minutes']:g} minutes are too few for stage {name} of size {asked['size']} here, which "
            f"takes {found.step:.2g} s a step and {found.setup + found.start + found.evaluation:.0f} s beside; give "
            "more --minutes."
        )
    return {
        "share": plan.stages[name].share, "budget_seconds": round(budget, 2), "step_seconds": found.step,
        "setup_seconds": round(found.setup, 2), "start_seconds": round(found.start, 2),
        "evaluation_seconds": round(found.evaluation, 2), "timed_steps": found.n_steps, "steps": steps,
        "lr": run.optim.lr,
    }, found.built  # fmt: skip
