"""A stage that was timed trains on with what it read, as if it had not been timed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muomni.config import STAGES, RunConfig
from muomni.models.weights import load_weights, newest_complete
from muomni.train.loop import Result, train
from muomni.train.stages import stage
from muomni.train.timing import time_stage

SmallRun = Callable[..., RunConfig]


def _state(result: Result) -> dict[str, torch.Tensor]:
    path = newest_complete(result.directory)
    assert path is not None
    return load_weights(path / "weights.safetensors") | load_weights(path / "optimizer.safetensors")


def _without(trained: Path, root: Path, name: str) -> Path:
    """The trained run without a stage."""
    shutil.copytree(trained, root, ignore=lambda _, names: [n for n in names if n in (name, f"{name}.lock")])
    return root


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_that_was_timed_trains_to_the_weights_of_one_that_was_not(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    run, more = small_run(name, steps=9), small_run(name, steps=4)
    root, other = _without(trained, tmp_path / "a", name), _without(trained, tmp_path / "b", name)
    own = stage(run)
    found = time_stage(own, run, root, seconds=0.0)
    built = train(own, more, root, built=found.built)
    straight = train(stage(more), more, other)
    a, b = _state(built), _state(straight)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert built.held_out == straight.held_out
    assert (built.quarantined, built.dropped) == (straight.quarantined, straight.dropped)


@pytest.mark.usefixtures("small_data")
def test_parents_that_have_changed_since_are_loaded_again(
    trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    root, run = _without(trained, tmp_path / "a", "talker"), small_run("talker", steps=2)
    own = stage(run)
    found = time_stage(own, run, root, seconds=0.0)
    codec = dataclasses.replace(small_run("codec", steps=3), seed=1)
    train(stage(codec), codec, root)
    built = train(own, run, root, built=found.built)
    other = _without(root, tmp_path / "b", "talker")
    straight = train(stage(run), run, other)
    a, b = _state(built), _state(straight)
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert built.held_out == straight.held_out
