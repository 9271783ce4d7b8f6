"""Trackers get the rows of the log, close at the end, and a missing one is one line with the remedy."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muomni.cli import main
from muomni.config import RunConfig
from muomni.train.metrics import RunLog
from muomni.train.trackers import TrackerError, check, tracking

SmallRun = Callable[..., RunConfig]
MODULES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}


class Service:
    """A tracking package that writes down how it is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Service:
            self.calls.append((name, args, kwargs))
            return self

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, Service]:
    """All three packages, installed for the length of a test."""
    found = {}
    for name, path in MODULES.items():
        module, found[name] = types.ModuleType(path), Service()
        for attribute in ("init", "SummaryWriter"):
            setattr(module, attribute, getattr(found[name], attribute))
        monkeypatch.setitem(sys.modules, path, module)
    return found


def test_each_tracker_gets_the_finite_numbers_of_every_row(
    tmp_path: Path, small_run: SmallRun, services: dict[str, Service]
) -> None:
    directory = tmp_path / "first run" / "text"
    with tracking(("tensorboard", "trackio", "wandb"), directory, small_run("text")) as opened:
        log = RunLog(directory, after=0, trackers=opened)
        log.write({"step": 3, "loss/token": 2.5, "lr": 1e-3, "grad_norm": float("nan"), "mfu": None})
        log.tell({"step": 4, "eval/bits": 1.5})
    board = services["tensorboard"]
    assert board.named("add_scalar") == [
        (("loss/token", 2.5, 3), {}), (("lr", 1e-3, 3), {}), (("eval/bits", 1.5, 4), {}),
    ]  # fmt: skip
    assert board.named("SummaryWriter")[0][1] == {
        "log_dir": str(directory / "tensorboard"),
        "purge_step": None,
    }
    assert services["trackio"].named("log") == [
        (({"loss/token": 2.5, "lr": 1e-3},), {"step": 3}), (({"eval/bits": 1.5},), {"step": 4}),
    ]  # fmt: skip
    assert [args for args, _ in services["wandb"].named("log")] == [
        ({"loss/token": 2.5, "lr": 1e-3, "step": 3},), ({"eval/bits": 1.5, "step": 4},),
    ]  # fmt: skip
    for name, last in (("tensorboard", "close"), ("trackio", "finish"), ("wandb", "finish")):
        assert services[name].calls[-1][0] == last
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3], "what is only told is not in the file"


def test_wandb_is_offline_unless_the_user_says_otherwise(
    tmp_path: Path, small_run: SmallRun, services: dict[str, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting, mode in ((None, "offline"), ("online", "online"), ("disabled", "disabled")):
        monkeypatch.delenv("WANDB_MODE", raising=False)
        if setting is not None:
            monkeypatch.setenv("WANDB_MODE", setting)
        with tracking(("wandb",), tmp_path / "r" / "text", small_run("text")):
            _, options = services["wandb"].named("init")[-1]
        assert options["mode"] == mode
        assert (options["project"], options["name"], options["group"]) == ("muomni", "r-text", "r")


def test_a_resumed_stage_goes_on_in_the_same_place(
    tmp_path: Path, small_run: SmallRun, services: dict[str, Service]
) -> None:
    with tracking(("tensorboard", "trackio"), tmp_path / "r" / "text", small_run("text"), after=500):
        pass
    assert services["tensorboard"].named("SummaryWriter")[0][1]["purge_step"] == 501
    assert services["trackio"].named("init")[0][1]["resume"] == "allow"


def test_a_tracker_is_closed_when_training_fails(
    tmp_path: Path, small_run: SmallRun, services: dict[str, Service]
) -> None:
    with (
        pytest.raises(RuntimeError, match="diverged"),
        tracking(("wandb",), tmp_path / "r" / "text", small_run("text")),
    ):
        raise RuntimeError("diverged")
    assert services["wandb"].calls[-1][0] == "finish"


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_package_is_one_line_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(TrackerError) as failure:
        check((name,))
    assert f"pip install 'muomni[{name}]'" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_the_command_line_says_it_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--run", str(tmp_path / "run"), "--track", "trackio"])
    assert stop.value.code == 2
    assert "pip install 'muomni[trackio]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("small_data")
def test_training_tells_rows_figures_and_samples(
    trained: Path, tmp_path: Path, small_run: SmallRun, services: dict[str, Service]
) -> None:
    from muomni.train.loop import train
    from muomni.train.stages import stage

    run = small_run("codec", steps=2, eval_every=1)
    train(stage(run), run, tmp_path, track=("trackio",), device="cpu")
    told = [(args[0], kwargs["step"]) for args, kwargs in services["trackio"].named("log")]
    assert [step for _, step in told] == [1, 1, 2, 2]
    for (row, _), keys in zip(
        told, [("loss/l1", "mfu", "memory_mib"), ("sample/log-mel error",)] * 2, strict=True
    ):
        assert set(keys) <= row.keys()
    folders = sorted(path.name for path in (tmp_path / "codec" / "samples").iterdir())
    assert folders == ["step-00000001", "step-00000002"]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="tensorboard is not installed: muomni[tensorboard]",
)
def test_tensorboard_itself_reads_what_was_written(tmp_path: Path, small_run: SmallRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = tmp_path / "run" / "text"
    for after, values in ((0, (2.5, 2.0, 9.0)), (2, (1.5,))):
        with tracking(("tensorboard",), directory, small_run("text"), after=after) as opened:
            for step, value in enumerate(values, start=after + 1):
                opened[0].log(step, {"loss/token": value})
    found = EventAccumulator(str(directory / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss/token")] == [(1, 2.5), (2, 2.0), (3, 1.5)]
