"""run.json while a stage trains and after it ended one way or another, as the loop writes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muomni.alive import is_alive
from muomni.config import RunConfig
from muomni.runs import find_runs
from muomni.train.loop import train
from muomni.train.stages import stage as make_stage
from muomni.train.status import Attended

SmallRun = Callable[..., RunConfig]


def _record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run.json").read_text())


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (
            KeyboardInterrupt("stage text saved at step 3 of 9"),
            "interrupted",
            "KeyboardInterrupt: stage text saved",
        ),
        (RuntimeError("first line\nsecond"), "failed", "RuntimeError: first line"),
        (MemoryError(), "failed", "MemoryError"),
    ],
)
def test_an_end_by_an_exception_is_written_down_and_the_exception_goes_on(
    error: BaseException, state: str, why: str, tmp_path: Path
) -> None:
    during: dict[str, Any] = {}

    def work() -> None:
        with Attended(tmp_path / "text", {"complete": False, "step": 0}, step=lambda: 3):
            during.update(_record(tmp_path / "text"))
            assert is_alive(during)
            raise error

    with pytest.raises(type(error)):
        work()
    assert during["state"] == "running"
    after = _record(tmp_path / "text")
    assert (after["state"], after["step"]) == (state, 3)
    assert after["error"].startswith(why) and "\n" not in after["error"]


def test_a_good_end_is_left_to_who_finishes(tmp_path: Path) -> None:
    with Attended(tmp_path / "text", {"complete": False}, step=lambda: 3):
        (tmp_path / "text" / "run.json").write_text('{"complete": true}')
    assert _record(tmp_path / "text") == {"complete": True}


@pytest.mark.usefixtures("small_data")
def test_a_stage_is_running_while_it_trains_and_then_finished_with_its_plots(
    tmp_path: Path, small_run: SmallRun
) -> None:
    run = small_run("codec", steps=3)
    seen: list[str] = []

    def progress(step: int, steps: int, row: dict[str, float]) -> None:
        codec = next(s for s in find_runs(tmp_path)[0]["stages"] if s["stage"] == "codec")
        seen.append(codec["state"])
        assert (codec["step"], codec["steps"]) == (step, 3)

    train(make_stage(run), run, tmp_path, progress=progress, device="cpu")
    assert seen == ["running"] * 3
    record = _record(tmp_path / "codec")
    assert record["complete"] and "pid" not in record and "state" not in record
    for name in ("loss.svg", "throughput.svg"):
        assert (tmp_path / "codec" / name).read_text().startswith("<svg xmlns=")


@pytest.mark.usefixtures("small_data")
def test_a_stage_that_fails_says_why(
    tmp_path: Path, small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run("codec", steps=3)
    stage = make_stage(run)

    def broken(*_: object) -> None:
        raise ValueError("after the step")

    monkeypatch.setattr(stage, "after_step", broken)
    with pytest.raises(ValueError, match="after the step"):
        train(stage, run, tmp_path, device="cpu")
    codec = next(s for s in find_runs(tmp_path)[0]["stages"] if s["stage"] == "codec")
    assert (codec["state"], codec["reason"]) == ("failed", "ValueError: after the step")
