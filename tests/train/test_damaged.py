"""Damaged checkpoints: told, set aside, never counted as kept; and one trainer a stage."""

import dataclasses
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muomni.config import RunConfig
from muomni.errors import UserError
from muomni.models.codec import Codec
from muomni.models.weights import newest_complete
from muomni.settings import ConfigError
from muomni.train import checkpoint, held_out
from muomni.train.checkpoint import Checkpoint
from muomni.train.lock import only_one
from muomni.train.loop import train
from muomni.train.stage import Parts
from muomni.train.stages import stage as make_stage
from muomni.train.step import OutOfMemory, Step
from muomni.train.writer import Writer

SmallRun = Callable[..., RunConfig]


def state(step: int) -> Checkpoint:
    return Checkpoint(weights={"w": torch.full((4,), float(step))}, optimizer={}, record={"step": step})


def damage(path: Path) -> None:
    file = path / "weights.safetensors"
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.write_bytes(payload)


def steps(stage_dir: Path) -> list[str]:
    return sorted(path.name for path in (stage_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_save_keeps_itself_beside_damaged_newer_ones(keep: int, tmp_path: Path) -> None:
    for step in (100, 200):
        damage(checkpoint.save(tmp_path, state(step), keep=5))
    path = checkpoint.save(tmp_path, state(50), keep=keep)
    assert path.is_dir() and newest_complete(tmp_path) == path


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_saves_keep_the_newest(keep: int, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, state(step), keep=keep)
    assert steps(tmp_path) == [f"step-{s:08d}" for s in range(5 - keep, 5)]


def test_a_resume_tells_of_damaged_checkpoints_and_sets_them_aside(
    small_data: None, small_run: SmallRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run("text", steps=6, save_every=2, keep=3)
    train(make_stage(run), run, tmp_path)
    good = tmp_path / "text" / "checkpoints" / "step-00000002"
    for step in (4, 6):
        damage(good.with_name(f"step-{step:08d}"))
    with caplog.at_level(logging.WARNING):
        result = train(make_stage(run), run, tmp_path)
    assert result.step == 6 and not result.reused
    told = [r.getMessage() for r in caplog.records if "kept as damaged-step" in r.getMessage()]
    assert len(told) == 2 and all("on from step-00000002" in line for line in told)
    assert newest_complete(tmp_path / "text") == good.with_name("step-00000006")
    assert {f"damaged-step-{s:08d}" for s in (4, 6)} < set(steps(tmp_path / "text"))


def test_a_save_that_fails_after_a_signal_is_told_and_not_called_saved(
    small_data: None, small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    run = small_run("text", steps=6)
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda *_, **__: (_ for _ in ()).throw(checkpoint.CheckpointError("no space left")),
    )
    real, taken = Step.__call__, []

    def step(self: Step, *arguments: object, **more: object) -> object:
        taken.append(1)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Step, "__call__", step)
    assert Writer is not None
    with pytest.raises(checkpoint.CheckpointError, match="no space left"):
        train(make_stage(run), run, tmp_path)


def test_another_process_on_the_same_stage_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from muomni.train.lock import only_one\n"
        "with only_one(pathlib.Path(sys.argv[1]), 'text', main=True):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match="another process trains this stage"),
            only_one(tmp_path, "text", main=True),
        ):
            pass
        with only_one(tmp_path, "audio", main=True), only_one(tmp_path, "text", main=False):
            pass
        other.kill()
    with only_one(tmp_path, "text", main=True):
        pass


def test_a_first_codec_step_that_is_left_out_keeps_the_start_from_the_data(
    small_data: None, small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run("codec", steps=3)
    stage = make_stage(run)
    model = stage.build(run, tmp_path)
    stage.set_mode(model)
    take = Step(stage, run, model)
    quantizer = model.get_submodule("codec").quantizer
    (batch,) = stage.batch(0)
    bad = dataclasses.replace(batch, frames=batch.frames * float("nan"))
    assert isinstance(model, Parts) and isinstance(model.get_submodule("codec"), Codec)
    assert float(take([[bad]], lambda parts: [[bad]], step=0).bad) == 1.0
    assert int(quantizer.n_commits) == 0
    fresh = make_stage(run)
    other = fresh.build(run, tmp_path)
    fresh.set_mode(other)
    other.load_state_dict(model.state_dict())
    again = Step(fresh, run, other)
    for one in (take, again):
        one([[batch]], lambda parts: [[batch]], step=1)
    assert torch.equal(quantizer.codebooks, other.get_submodule("codec").quantizer.codebooks)
    assert int(quantizer.n_commits) == 1


@pytest.mark.parametrize(
    "setting",
    ["train.micro_batches", "train.log_every", "train.batch_tokens", "train.batch_items", "train.keep"],
)
def test_settings_that_cannot_work_are_refused(setting: str, small_run: SmallRun) -> None:
    name = setting.partition(".")[2]
    with pytest.raises(ConfigError, match=rf"{setting}: expected 1 <= value"):
        small_run("text", **{name: 0})
    with pytest.raises(ConfigError, match=r"train\.save_every: expected 0 <= value"):
        small_run("text", save_every=-1)


def test_an_evaluation_without_memory_is_tried_once_more_without_recordings(
    small_data: None, small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run("text", steps=1)
    calls: list[int] = []
    real = held_out._measured

    def short(*arguments: object, **more: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(held_out, "_measured", short)
    assert train(make_stage(run), run, tmp_path / "a").held_out and len(calls) == 2
    monkeypatch.setattr(
        held_out, "_measured", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("x"))
    )
    with pytest.raises(OutOfMemory, match="out of memory while evaluating; choose a smaller"):
        train(make_stage(run), run, tmp_path / "b")
    shutil.rmtree(tmp_path / "b")
