"""The one training loop, for every stage."""

from __future__ import annotations

import contextlib
import logging
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muomni.config import FREE, RunConfig
from muomni.models.weights import CheckpointError, newest_complete
from muomni.settings import to_dict
from muomni.train import checkpoint, collector, trackers
from muomni.train.built import Built, parents_of
from muomni.train.faults import MAX_ROLLBACKS, DivergedError, Faults
from muomni.train.feed import Feed, died, n_workers
from muomni.train.held_out import measured
from muomni.train.lock import only_one
from muomni.train.meter import Meter
from muomni.train.metrics import RunLog, write_plots
from muomni.train.stage import Figure, Stage, check_same_model, owned, step_seed
from muomni.train.status import Attended
from muomni.train.step import Step
from muomni.train.stopping import stop_requests
from muomni.train.world import world as this_world
from muomni.train.writer import Writer

_LOG = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, float]], None]
"""Called as progress(step, steps, metrics of the last row)."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What training a stage gave."""

    stage: str
    step: int
    held_out: list[Figure]
    """Figures on the validation split."""
    seconds: float
    """Wall time of this call's steps."""
    reused: bool
    """The stage was finished already and nothing was trained."""
    skipped: int
    """Steps whose update was left out because a loss or gradient was not finite."""
    spikes: int = 0
    """Steps whose update was left out because the gradient norm was far above the ordinary."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Samples of each split that could not be used; quarantine.jsonl lists them."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Sound samples of each split that the configuration has no room for."""
    directory: Path

    @property
    def figures(self) -> dict[str, float]:
        """Each figure followed by its baseline, by name."""
        values: dict[str, float] = {}
        for figure in self.held_out:
            values[figure.name] = figure.value
            values[f"{figure.name} ({figure.baseline_name})"] = figure.baseline
        return values


def train(
    stage: Stage,
    run: RunConfig,
    root: Path,
    *,
    progress: Progress | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    track: Sequence[str] = (),
    built: Built | None = None,
) -> Result:
    """Train one stage to its end and measure it on the validation split.

    A finished stage with the same settings and the same parents is returned at once. An unfinished one goes
    on from its newest complete checkpoint, bit for bit on a CPU; other settings (but those of config.FREE), or
    resume=False, start over and keep the old run as `<stage>.previous`. Inside `world.Joined` all processes of the
    run call it alike, and each gets the result; the main one writes.
    device: None takes CUDA where there is one. track: trackers that are told every row, see trackers.py.
    built: of this stage and a run that differs in its steps and config.FREE alone; taken unless its parents have
    changed since.
    Raises StageOrderError, CheckpointError, BadDataError, TrackerError; KeyboardInterrupt on SIGINT or SIGTERM after
    saving, saying at which step.
    """
    world = this_world()
    world.share(run.train.micro_batches)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    directory = root / stage.name
    config = to_dict(run)
    trackers.check(track)
    # The caller's generator is put back: training seeds the global one at every step.
    devices = [where] if where.type == "cuda" else []
    with only_one(root, stage.name, main=world.main), torch.random.fork_rng(devices=devices):
        torch.manual_seed(step_seed(run.seed, 0))
        record = checkpoint.read_record(directory)
        if record is not None:
            check_same_model(record["config"]["model"], run.model, keys=("size",), where=directory)
        parents = parents_of(stage, root)
        same = (
            resume
            and record is not None
            and (_result_of(record["config"]), record["parents"]) == (_result_of(config), parents)
        )
        whole = record is not None and checkpoint.newest_step(directory) == record["step"]
        if same and whole and record is not None and record["complete"]:
            figures = [Figure(**values) for values in record["figures"]]
            return Result(
                stage=stage.name, step=record["step"], held_out=figures, seconds=0.0, reused=True,
                skipped=record["skipped"], spikes=record.get("spikes", 0), directory=directory,
                quarantined=record.get("quarantined", {}), dropped=record.get("dropped", {}),
            )  # fmt: skip
        # A stage that was timed was made for other steps.
        stage.run = run
        with world.first():
            model = (built.model if built and built.parents == parents else stage.build(run, root)).to(where)
        if record is not None and not same and world.main:
            _set_aside(directory)
        with world.first():
            stage.quarantine.open(directory, resume=same or not world.main)
        return _Trainer(
            stage, run, model=model, directory=directory, parents=parents, progress=progress, track=track
        ).run_all()


def _result_of(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run's result depends on."""
    return config | {"train": {k: v for k, v in config["train"].items() if k not in FREE}}


def _set_aside(directory: Path) -> None:
    previous = directory.with_name(f"{directory.name}.previous")
    if previous.exists():
        shutil.rmtree(previous)
    directory.rename(previous)


class _Trainer:
    """One call of `train`."""

    def __init__(
        self,
        stage: Stage,
        run: RunConfig,
        *,
        model: nn.Module,
        directory: Path,
        parents: dict[str, str | None],
        progress: Progress | None,
        track: Sequence[str],
    ) -> None:
        self.stage, self.run, self.model, self.directory = stage, run, model, directory
        self.parents, self.progress, self.track = parents, progress, track
        self.device = next(model.parameters()).device
        self.take = Step(stage, run, model)
        self.world = self.take.world
        self.step = 0
        self.position = 0
        self.faults = Faults(self.device)
        self.seconds = 0.0
        self._resume()
        self.told: Sequence[trackers.Tracker] = ()
        self.log: RunLog | None = None
        self.meter = Meter(stage, model, half=self.take.half, world=self.world, whole=self.take.net.whole)
        self.writer = Writer(directory, keep=run.train.keep, form=self.take.net)
        self._row: dict[str, Any] = {}
        self._start_row()

    def _resume(self) -> None:
        with self.world.first():
            damaged = checkpoint.set_damaged_aside(self.directory) if self.world.main else []
        path = newest_complete(self.directory)
        for line in damaged:
            _LOG.warning("%s; on from %s.", line, path.name if path else "the beginning")
        record = {"step": 0} if path is None else checkpoint.record_of(path)
        if not self.world.same(record["step"]):
            raise CheckpointError(
                f"{self.directory}: processes see different checkpoints; give all of them the same --run directory."
            )
        if path is None:
            return
        self.take.net.restore(path, self.take.optimizers)
        self.step, self.position = record["step"], record["position"]
        self.faults.load(record)

    def record(self, *, complete: bool, figures: list[Figure] | None = None) -> dict[str, Any]:
        """run.json: everything but the tensors."""
        return {
            "config": to_dict(self.run),
            "step": self.step,
            "position": self.position,
            **self.faults.record(),
            "complete": complete,
            "parents": self.parents,
            "figures": [asdict(figure) for figure in figures or []],
            "quarantined": self.stage.quarantine.counts(),
            "dropped": self.stage.quarantine.dropped,
            "seconds": round(self.seconds, 2),
            "device": str(self.device),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }

    def save(self) -> None:
        """Begin to write a checkpoint of this step."""
        if not self.take.net.saves:
            return
        state = checkpoint.Checkpoint(
            weights=owned(self.model, self.stage.saved)
            | {name: value for o in self.take.optimizers.values() for name, value in o.averages.items()},
            optimizer={f"{p}/{k}": v for p, o in self.take.optimizers.items() for k, v in o.state().items()},
            record=self.record(complete=self.step == self.run.train.steps),
        )
        self.writer.start(state)

    def run_all(self) -> Result:
        """Train, save, measure; run.json and the trackers know how it goes."""
        if not self.world.main:
            return self._run_all()
        attended = Attended(self.directory, self.record(complete=False), step=lambda: self.step)
        tracking = trackers.tracking(self.track, self.directory, self.run, after=self.step)
        with attended, tracking as self.told:
            self.log = RunLog(self.directory, after=self.step, trackers=self.told)
            return self._run_all()

    def _run_all(self) -> Result:
        steps, save_every, eval_every = (
            self.run.train.steps,
            self.run.train.save_every,
            self.run.train.eval_every,
        )
        self.stage.set_mode(self.model)
        # A stage is finished when its last checkpoint is on the disk; one that ends early has it too.
        with stop_requests() as stopped, self.writer, collector.quiet() as quiet, self._feeding() as feeding:
            while self.step < steps:
                started = time.perf_counter()
                self.train_step(feeding())
                self.seconds += time.perf_counter() - started
                quiet.step_done()
                if self.step % self.run.train.log_every == 0 or self.step == steps:
                    self._write_row()
                    longest = self._row["longest_bad"]
                    if self.faults.must_roll_back(
                        longest=longest, step=self.step, limit=self.run.train.bad_steps
                    ) and self._roll_back(longest):
                        continue
                if self.progress is not None:
                    self.progress(self.step, steps, self._row)
                if self.step == steps or (save_every and self.step % save_every == 0):
                    with self.meter.apart():
                        self.save()
                        quiet.collect()
                if eval_every and self.step % eval_every == 0 and self.step < steps:
                    with self.meter.apart():
                        self._log(
                            measured(self.stage, self.model, self.take, self.directory, step=self.step)[1]
                        )
                        self.stage.set_mode(self.model)
                if self.world.any(bool(stopped)) and self.step < steps:
                    self.save()
                    self.writer.wait()
                    raise KeyboardInterrupt(f"stage {self.stage.name} saved at step {self.step} of {steps}")
        figures, row = measured(self.stage, self.model, self.take, self.directory, step=self.step)
        record = self.record(complete=True, figures=figures)
        if self.log is not None:
            self.log.tell(row)
            write_plots(self.directory, self.stage.name)
            checkpoint.write_json(self.directory / "run.json", record)
        # The next stage reads what this one wrote.
        self.world.wait()
        return Result(
            stage=self.stage.name, step=self.step, held_out=figures, seconds=self.seconds, reused=False,
            skipped=record["skipped"], spikes=record["spikes"], directory=self.directory,
            quarantined=record["quarantined"], dropped=record["dropped"],
        )  # fmt: skip

    def _roll_back(self, longest: int) -> bool:
        """Go back to the last checkpoint, but not to its data: what made `longest` steps fail is not repeated.

        Before the first checkpoint the parameters stay: no step that was left out has changed them.
        Returns whether the step went back. Raises DivergedError when that did not help MAX_ROLLBACKS times.
        """
        failed_at, position, faults = self.step, self.position, self.faults
        what = f"stage {self.stage.name}: {longest} steps in a row were left out by step {failed_at}"
        if faults.rollbacks >= MAX_ROLLBACKS:
            raise DivergedError(
                f"{what}, and {faults.rollbacks} returns to the last checkpoint with later data did not help; "
                f"lower optim.lr, or look at the data before position {position}."
            )
        counted = faults.record()
        self.writer.wait()
        self.world.wait()
        self._resume()
        self.position = position
        faults.rolled_back(step=failed_at, counted=counted)
        _LOG.warning("%s; on from step %d with the data from position %d.", what, self.step, position)
        if self.log is not None:
            self.log = RunLog(self.directory, after=self.step, trackers=self.told)
        self._log({"step": self.step, "rolled_back_from": failed_at, "position": position})
        self._start_row()
        return self.step < failed_at

    @contextlib.contextmanager
    def _feeding(self) -> Iterator[Callable[[], Feed]]:
        """Gives the Feed of this position: another one after a return to a checkpoint or another number of parts.

        Raises UserError when a worker dies, wherever in a step its end is noticed.
        """
        count = n_workers(self.run.train.workers, device=self.device)
        feed, expected = None, (-1, -1)

        def current() -> Feed:
            nonlocal feed, expected
            if feed is None or expected != (self.position, self.take.parts):
                if feed is not None:
                    feed.close()
                feed = Feed(
                    self.stage, self.position + self.world.rank, stride=self.world.size, parts=self.take.parts,
                    n_workers=count, pin=self.device.type == "cuda",
                )  # fmt: skip
            expected = (self.position + self.run.train.micro_batches, self.take.parts)
            return feed

        try:
            yield current
        except RuntimeError as error:
            if (told := died(error)) is not error:
                raise told from error
            raise
        finally:
            if feed is not None:
                feed.close()

    def train_step(self, feed: Feed) -> None:
        """One optimizer step. Nothing is read back from the device."""
        n, start = self.run.train.micro_batches, self.position
        own = range(start + self.world.rank, start + n, self.world.size)

        def fetch(parts: int) -> list[list[Any]]:
            return [self.stage.batch(position, parts) for position in own]

        micro, parts = [next(feed) for _ in own], self.take.parts
        self.position += n
        taken = self.take(micro, fetch, step=self.step)
        if self.take.parts != parts:
            # What is metered is what fitted.
            micro = fetch(self.take.parts)
        for key, value in taken.seen.items():
            left = torch.where(taken.bad > 0, torch.zeros_like(value), value)
            self._sums[key] = self._sums.get(key, 0) + left
        self.faults.add(taken.bad, taken.spiked)
        self._good = self._good + (1 - taken.bad)
        self.step += 1
        self._lr = taken.lr
        self.meter.add([piece for pieces in micro for piece in pieces])

    def _start_row(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self.faults.new_row()
        self._good: torch.Tensor | float = 0.0
        self._lr = 0.0
        self.meter.start()

    def _write_row(self) -> None:
        """Read the sums back once and append a row."""
        keys = list(self._sums)
        *values, good, skipped, spikes, longest_bad = torch.stack(
            [*(self._sums[k] for k in keys), torch.as_tensor(self._good), *self.faults.values()]
        ).tolist()
        self._row = {
            "step": self.step,
            **{k: v / good if good else None for k, v in zip(keys, values, strict=True)},
            "lr": self._lr,
            "skipped": int(skipped),
            "spikes": int(spikes),
            "longest_bad": int(longest_bad),
            **self.meter.values(),
        }
        self._log(self._row)
        self._start_row()

    def _log(self, row: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(row)
