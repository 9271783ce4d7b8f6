"""What a stage costs here, measured on a few steps that leave nothing behind but what the stage has read."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muomni.config import RunConfig
from muomni.train.built import Built, build
from muomni.train.feed import Feed, n_workers
from muomni.train.held_out import measured
from muomni.train.stage import Stage
from muomni.train.step import Step

WARM_UP = 3
"""Steps before those that are timed: compilation, recordings, the codebooks' start."""
FEWEST, MOST = 8, 400
"""Steps that are timed; fewer only where the seconds do not suffice for two."""
PATIENCE = 5.0
"""Times the given seconds after which fewer than FEWEST will do."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one stage's run."""

    setup: float
    """Reading the data and making the model, which need not be done again."""
    start: float
    """What the first steps take longer than others."""
    step: float
    """Mean of an optimizer step."""
    evaluation: float
    """Figures and samples of the validation split."""
    n_steps: int
    """Steps that were timed."""
    built: Built
    """For `train` with the same stage: no step has touched it."""


def time_stage(
    stage: Stage,
    run: RunConfig,
    root: Path,
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    device: str | torch.device | None = None,
) -> Timing:
    """Build a stage, take some steps with a copy of its model as `train` would, evaluate it once, and forget the copy.

    stage: one that was not built before. seconds: how long steps are timed, after WARM_UP of them. Nothing is
    written but what `Stage.build` writes. Raises what `train` raises for a stage that cannot begin.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    devices = [where] if where.type == "cuda" else []
    began = clock()
    with torch.random.fork_rng(devices=devices), tempfile.TemporaryDirectory() as aside:
        built = build(stage, run, root)
        setup = clock() - began
        # The stage may hold its model and make things with it, which must be where `train` makes them.
        model = copy.deepcopy(built.model.to(where))
        stage.quarantine.open(Path(aside), resume=False)
        take = Step(stage, run, model)
        stage.set_mode(model)
        each = run.train.micro_batches
        feed = Feed(
            stage, 0, parts=take.parts, pin=where.type == "cuda",
            n_workers=n_workers(run.train.workers, device=where),
        )  # fmt: skip
        times: list[float] = []
        try:
            while len(times) <= MOST + WARM_UP and not _enough(times, seconds):
                number = len(times)

                def fetch(parts: int, number: int = number) -> list[list[Any]]:
                    return [
                        stage.batch(position, parts) for position in range(number * each, (number + 1) * each)
                    ]

                # What did not fit in memory goes on in pieces, which the feed was not made for.
                take(
                    [next(feed) for _ in range(each)] if take.parts == 1 else fetch(take.parts),
                    fetch,
                    step=number,
                )
                if where.type == "cuda":
                    torch.cuda.synchronize(where)
                times.append(clock())
        finally:
            feed.close()
        timed = len(times) - WARM_UP
        step = (times[-1] - times[WARM_UP - 1]) / timed
        before = clock()
        measured(stage, model, take, Path(aside), step=0)
        evaluation = clock() - before
        take.forget()
        stage.quarantine.close()
    start = max(times[WARM_UP - 1] - began - setup - WARM_UP * step, 0.0)
    return Timing(setup=setup, start=start, step=step, evaluation=evaluation, n_steps=timed, built=built)


def _enough(times: list[float], seconds: float) -> bool:
    """Whether the steps after the warm-up took so long, and are enough to judge by."""
    if (timed := len(times) - WARM_UP) < 2:
        return False
    spent = times[-1] - times[WARM_UP - 1]
    return spent >= seconds * (1.0 if timed >= FEWEST else PATIENCE)
