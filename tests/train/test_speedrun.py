"""A speedrun keeps to its minutes by a clock that counts steps, and one that was stopped ends as one that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from muomni import demo, recipes, speedrun
from muomni.config import SIZES, STAGES, RunConfig
from muomni.models.weights import load_weights, newest_complete
from muomni.recipes import StageShare
from muomni.speedrun import SpeedrunError, run_speedrun
from muomni.train import loop, timing
from muomni.train.loop import train
from muomni.train.stage import Stage
from muomni.train.stages import stage
from muomni.train.step import Step

SmallRun = Callable[..., RunConfig]
MINUTES = 2.2
FEWER_MINUTES = 1.7
"""Of four stages."""
EVALUATION = 30.0
"""Seconds of the last evaluation."""
STEP = {"text": 0.5, "audio": 0.4, "vision": 0.3, "codec": 0.2, "omni": 0.5, "talker": 0.6}
FIRST = 1.5
"""What a call's first step takes besides."""
HELD_OUT = 0.7
SETUP = 0.3
"""Of reading a stage's data."""
SLOW = ("audio", "vision", "codec", "omni")
"""Stages whose batches another process makes where there is a core for it."""


class Machine:
    """A clock that steps and evaluations move, and nothing else."""

    def __init__(self, patch: pytest.MonkeyPatch, small_run: SmallRun) -> None:
        self.now = 1_000.0
        self.before_step: Callable[[str, int, bool], None] = lambda name, step, training: None
        self.factor: Callable[[str, int], float] = lambda name, steps: 1.0
        """Of a step's seconds, by stage and train.steps."""
        self.built: list[str] = []
        self.cores = 1
        whole, figures = Step.__call__, loop.measured

        def made(run: RunConfig) -> Stage:
            own = stage(run)
            build = own.build

            def built(run: RunConfig, root: Path) -> nn.Module:
                self.now += SETUP
                self.built.append(own.name)
                return build(run, root)

            own.build = built
            return own

        def step(take: Step, *arguments: Any, step: int) -> Any:
            name, steps = take.stage.name, take.run.train.steps
            # Timed steps are those of the recipe's run.
            self.before_step(name, step, steps != small_run(name).train.steps)
            self.now += STEP[name] * self.factor(name, steps) + (FIRST if step == 0 else 0.0)
            return whole(take, *arguments, step=step)

        def measured(*arguments: Any, **named: Any) -> Any:
            self.now += HELD_OUT
            return figures(*arguments, **named)

        def evaluation(root: Path, *, console: Console) -> dict[str, Any]:
            self.now += EVALUATION
            return {"figures": [{"name": "a", "value": 1.0}]}

        patch.setattr(Step, "__call__", step)
        patch.setattr(loop, "measured", measured)
        patch.setattr(timing, "measured", measured)
        patch.setattr(speedrun, "stage", made)
        patch.setattr(demo, "stage", made)
        patch.setattr(speedrun, "n_cores", lambda: self.cores)
        patch.setattr(speedrun, "measure", evaluation)
        patch.setattr(speedrun, "recipe", lambda size, name: small_run(name))
        patch.setattr(speedrun, "plan_of", lambda size: self.plan)
        self.plan = dataclasses.replace(
            recipes.speedrun("nano"), evaluation_seconds=EVALUATION,
            stages={name: StageShare(share=0.92 / 6, lr=6e-3 if name == "text" else None) for name in STEP},
        )  # fmt: skip

    def few_stages(self) -> None:
        """Only those that say something new about stopping and sharing."""
        stages = {name: StageShare(share=0.23) for name in ("text", "audio", "vision", "codec")}
        self.plan = dataclasses.replace(self.plan, stages=stages)

    def run(self, root: Path, **changes: Any) -> dict[str, Any]:
        asked = {"size": "nano", "minutes": MINUTES} | changes
        return run_speedrun(root, **asked, console=Console(quiet=True), clock=lambda: self.now)


@pytest.fixture
def machine(small_data: None, monkeypatch: pytest.MonkeyPatch, small_run: SmallRun) -> Machine:
    torch.set_num_threads(1)
    return Machine(monkeypatch, small_run)


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    path = newest_complete(root / name)
    assert path is not None
    return load_weights(path / "weights.safetensors")


def test_a_run_keeps_to_its_minutes_and_its_weights_are_those_of_training_with_its_steps(
    machine: Machine, tmp_path: Path
) -> None:
    """Oracles: the costs of the machine, and `train` with the steps that were chosen."""
    machine.cores = 2
    began, machine.now = machine.now, machine.now + 3.0
    record = machine.run(tmp_path / "run", began=began)
    used = machine.now - began
    assert used <= 60 * MINUTES
    assert record["seconds"] == pytest.approx(used, abs=0.02)
    assert record["within"]
    assert record["calls"] == 1
    for name, part in record["parts"].items():
        if name == "evaluation":
            assert part["seconds"] == pytest.approx(EVALUATION)
            continue
        assert part["step_seconds"] == pytest.approx(STEP[name])
        assert part["setup_seconds"] == pytest.approx(SETUP)
        assert part["start_seconds"] == pytest.approx(FIRST)
        assert part["threads"] == 1
        assert part["workers"] == (1 if name in SLOW else 0)
        timed = SETUP + FIRST + (timing.WARM_UP + part["timed_steps"]) * STEP[name] + HELD_OUT
        whole = timed + FIRST + part["steps"] * STEP[name] + HELD_OUT
        assert part["seconds"] == pytest.approx(whole, abs=0.02)
        # One more would not have fitted.
        assert whole <= part["budget_seconds"] + 0.02 < whole + STEP[name] + 0.04
        # Without the process that made batches.
        run = speedrun.configured(machine.plan, name, record, steps=part["steps"])
        assert run.optim.lr == (machine.plan.stages[name].lr or 2e-3)
        train(stage(run), run, tmp_path / "straight")
        own, other = weights(tmp_path / "run", name), weights(tmp_path / "straight", name)
        assert own.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in own.items()), name
    assert machine.built == list(STEP)
    assert json.loads((tmp_path / "run" / "record.json").read_text()) == record
    assert (tmp_path / "run" / "loss.svg").read_text().startswith("<svg")
    again = machine.run(tmp_path / "run")
    assert again["seconds"] == record["seconds"]
    assert again["calls"] == 1


@pytest.mark.parametrize("timed", [True, False], ids=["while it is timed", "while it trains"])
def test_a_stopped_run_goes_on_with_the_same_steps_to_the_same_weights(
    machine: Machine, tmp_path: Path, timed: bool
) -> None:
    machine.few_stages()
    machine.cores = 2
    straight = machine.run(tmp_path / "straight", minutes=FEWER_MINUTES)
    sent: list[str] = []

    def stop(name: str, step: int, training: bool) -> None:
        if name == "vision" and step == 2 and training is not timed and not sent:
            sent.append(name)
            if timed:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    machine.before_step = stop
    with pytest.raises(KeyboardInterrupt):
        machine.run(tmp_path / "run", minutes=FEWER_MINUTES)
    machine.now += 10_000.0
    machine.built.clear()
    before = json.loads((tmp_path / "run" / speedrun.LEDGER).read_text())["parts"]
    record = machine.run(tmp_path / "run", minutes=FEWER_MINUTES)
    assert record["calls"] == 2
    assert record["within"]
    assert machine.built == ["vision", "codec"]
    for name, part in before.items():
        assert {k: v for k, v in part.items() if k != "seconds"}.items() <= record["parts"][name].items()
    names = list(machine.plan.stages)
    same = names[: names.index("vision") + (0 if timed else 1)]
    for name in same:
        assert record["parts"][name]["steps"] == straight["parts"][name]["steps"]
        own, other = weights(tmp_path / "run", name), weights(tmp_path / "straight", name)
        assert all(torch.equal(value, other[key]) for key, value in own.items()), name


def test_what_a_slow_stage_took_is_taken_from_the_later_ones_alike(machine: Machine, tmp_path: Path) -> None:
    machine.few_stages()
    straight = machine.run(tmp_path / "straight", minutes=FEWER_MINUTES)["parts"]
    chosen = straight["audio"]["steps"]
    machine.factor = lambda name, steps: 1.5 if name == "audio" and steps == chosen else 1.0
    record = machine.run(tmp_path / "slow", minutes=FEWER_MINUTES)
    parts, later = record["parts"], ("vision", "codec")
    assert parts["audio"]["seconds"] > parts["audio"]["budget_seconds"]
    ratios = [parts[name]["budget_seconds"] / straight[name]["budget_seconds"] for name in later]
    lost = parts["audio"]["seconds"] - straight["audio"]["seconds"]
    shares = sum(machine.plan.stages[name].share for name in later)
    expected = straight["vision"]["budget_seconds"] - lost * machine.plan.stages["vision"].share / shares
    assert parts["vision"]["budget_seconds"] == pytest.approx(expected, abs=0.05)
    # What does not divide into steps goes on to the next: the ratios differ by little.
    assert max(ratios) < 1.0
    assert max(ratios) - min(ratios) < 0.05
    assert record["within"]


def stopped(machine: Machine, root: Path) -> None:
    """A run that was stopped as soon as it trained: its first stage's steps are chosen."""

    def stop(name: str, step: int, training: bool) -> None:
        if training:
            raise KeyboardInterrupt

    machine.before_step = stop
    with pytest.raises(KeyboardInterrupt):
        machine.run(root)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"minutes": 3.0}, "--minutes 2.2, not 3.0"),
        ({"data": "small"}, "--data embedded, not small"),
        ({"size": "tiny"}, "--size nano, not tiny"),
        ({"seed": 1}, "--seed 0, not 1"),
    ],
)
def test_other_settings_in_the_same_directory_are_one_line(
    machine: Machine, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    stopped(machine, tmp_path)
    with pytest.raises(SpeedrunError, match=told) as error:
        machine.run(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_a_run_that_another_version_began_is_one_line(machine: Machine, tmp_path: Path) -> None:
    stopped(machine, tmp_path)
    ledger = tmp_path / speedrun.LEDGER
    ledger.write_text(ledger.read_text().replace('"threads"', '"cores"'))
    with pytest.raises(SpeedrunError, match="begun by another version of muomni; choose another --run"):
        machine.run(tmp_path)


def test_minutes_that_do_not_suffice_and_a_directory_of_another_run_are_one_line(
    machine: Machine, tmp_path: Path
) -> None:
    with pytest.raises(SpeedrunError, match=r"0\.7 minutes are too few for stage text of size nano") as error:
        machine.run(tmp_path / "short", minutes=0.7)
    assert "\n" not in str(error.value)
    # Nothing was trained: the same directory takes more minutes.
    machine.before_step = lambda name, step, training: (
        os.kill(os.getpid(), signal.SIGINT) if training else None
    )
    with pytest.raises(KeyboardInterrupt):
        machine.run(tmp_path / "short")
    assert json.loads((tmp_path / "short" / speedrun.LEDGER).read_text())["minutes"] == MINUTES
    (tmp_path / "other" / "audio").mkdir(parents=True)
    with pytest.raises(SpeedrunError, match="holds a stage audio of another run; choose another --run"):
        machine.run(tmp_path / "other")


@pytest.mark.parametrize(
    ("threads", "cores", "asked", "slow", "expected"),
    [
        (2, 2, None, True, (1, 1)),
        (2, 2, None, False, (2, 0)),
        (2, 2, 2, True, (2, 0)),
        (2, 2, 1, True, (1, 1)),
        (2, 2, 1, False, (1, 0)),
        (1, 1, None, True, (1, 0)),
        (1, 2, None, True, (1, 1)),
        (4, 8, None, True, (4, 1)),
        (8, 8, None, True, (7, 1)),
    ],
)
def test_a_process_that_makes_batches_has_a_core_of_its_own(
    threads: int, cores: int, asked: int | None, slow: bool, expected: tuple[int, int],
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(speedrun, "n_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked or threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    own = stage(small_run("vision" if slow else "text"))
    assert speedrun.processors(own, fixed=asked is not None) == expected


@pytest.mark.parametrize("size", SIZES)
def test_the_shares_of_a_plan_add_up_in_training_order(size: str) -> None:
    plan = recipes.speedrun(size)
    assert sum(s.share for s in plan.stages.values()) + plan.evaluation + plan.slack == pytest.approx(1.0)
    assert list(plan.stages) == [name for name in STAGES if name in plan.stages]
    assert set(STAGES) - set(plan.stages) == {"vocoder"}
