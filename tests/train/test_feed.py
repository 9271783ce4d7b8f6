"""Batches made ahead by processes are those made in place; a worker that dies does not hang the run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni.config import STAGES, RunConfig
from muomni.errors import UserError
from muomni.models.weights import load_weights, newest_complete
from muomni.train.feed import Feed, WorkerError, died, n_workers
from muomni.train.loop import train
from muomni.train.stage import StageBase, generator
from muomni.train.stages import stage as make_stage
from muomni.train.stages.audio import AudioStage

SmallRun = Callable[..., RunConfig]
pytestmark = pytest.mark.usefixtures("small_data")


class Numbers(StageBase):
    """A batch is its position and the parts asked for."""

    refused_at: int | None = None

    def batch(self, position: int, parts: int = 1) -> list[Any]:
        if position == self.refused_at:
            raise UserError("text: item 7 cannot be read; delete it.")
        draw = torch.randn(3, generator=generator(0, position))
        return [(position, part, draw) for part in range(parts)]


def _numbers(small_run: SmallRun, **changes: Any) -> Any:
    stage = Numbers(small_run("text"))
    for name, value in changes.items():
        setattr(stage, name, value)
    return stage


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_order_is_that_of_the_positions_whatever_the_workers(count: int, small_run: SmallRun) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    feed = Feed(_numbers(small_run), 4, stride=3, parts=2, n_workers=count, pin=False)
    for position in range(4, 40, 3):
        (first, one, x), (second, two, _) = next(feed)
        assert (first, one, second, two) == (position, 0, position, 1)
        assert torch.equal(x, torch.randn(3, generator=generator(0, position)))
    feed.close()
    assert torch.equal(torch.get_rng_state(), before), "training's generator is left alone"
    with pytest.raises(ValueError, match="closed"):
        next(feed)


@pytest.mark.parametrize("count", [0, 2])
def test_data_that_cannot_be_used_is_one_line_from_a_worker_too(count: int, small_run: SmallRun) -> None:
    feed = Feed(_numbers(small_run, refused_at=2), 0, n_workers=count, pin=False)
    assert next(feed) and next(feed)
    with pytest.raises(UserError, match=r"^text: item 7 cannot be read; delete it\.$"):
        next(feed)
    feed.close()


# A program of its own: PyTorch tells of a dead worker by a signal, which would raise anywhere in pytest too.
DEAD_WORKER = """
import os, signal, sys
from muomni.train.feed import Feed, died

class Stage:
    def batch(self, position, parts=1):
        if position == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return [position]

try:
    feed = Feed(Stage(), 0, n_workers=1, pin=False)
    for _ in range(1000):
        next(feed)
except RuntimeError as error:
    print(died(error), flush=True)
    os._exit(3)
"""


def test_a_dead_worker_is_told_once_and_does_not_hang() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEAD_WORKER], text=True, stdout=subprocess.PIPE, check=False, timeout=300
    )
    assert done.returncode == 3
    assert re.fullmatch(r"DataLoader worker .*; the system may have been .*train\.workers.*\n", done.stdout)
    assert done.stdout.count("DataLoader worker") == 1


def test_only_dead_workers_are_told_as_such_and_only_once() -> None:
    other, dead = (
        RuntimeError("shapes differ"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
    )
    told = died(dead)
    assert isinstance(told, WorkerError) and died(told) is told and died(other) is other


def test_workers_by_default_are_for_a_gpu() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [n_workers(-1, device=d) for d in (cuda, cpu)] == [2, 0]
    assert [n_workers(5, device=d) for d in (cuda, cpu)] == [5, 5]


def test_workers_end_with_their_feed_whoever_still_refers_to_it(small_run: SmallRun) -> None:
    """An interruption's traceback does, up to the end of the program, which would then wait for them for ever."""
    feed = Feed(_numbers(small_run), 0, n_workers=2, pin=False)
    assert next(feed)
    iterator: Any = feed._batches
    assert [worker.is_alive() for worker in iterator._workers] == [True, True]
    feed.close()
    assert [worker.is_alive() for worker in iterator._workers] == [False, False]


def test_a_long_clip_is_augmented_to_the_same_bits_by_any_number_of_threads(small_run: SmallRun) -> None:
    """A worker has one; PyTorch adds up more than 32,768 values in as many parts as it has threads."""
    own, before = make_stage(small_run("audio")), torch.get_num_threads()
    assert isinstance(own, AudioStage)
    try:
        for number in range(20):
            mel, made = torch.randn(900 + number, 80, generator=generator(0, number)), []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                made.append(own.augment(mel, generator(1, number)))
            assert torch.equal(*made)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["text", "audio", "vision", "codec", "omni", "talker"])
def test_a_run_with_workers_is_the_run_without(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    states, losses = [], []
    for count in (0, 2):
        run = small_run(name, steps=3, micro_batches=2, workers=count)
        root = tmp_path / str(count)
        root.mkdir()
        shutil.copy(trained / "tokenizer.json", root)
        for parent in make_stage(run).parents:
            shutil.copytree(trained / parent, root / parent)
        result = train(make_stage(run), run, root, device="cpu")
        path = newest_complete(result.directory)
        assert path is not None
        states.append(load_weights(path / "weights.safetensors"))
        rows = (result.directory / "metrics.jsonl").read_text().splitlines()
        losses.append([{k: v for k, v in json.loads(row).items() if k.startswith("loss/")} for row in rows])
    assert losses[0] == losses[1]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", STAGES)
def test_pieces_of_every_stage_have_one_shape_and_lose_no_target(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    root = tmp_path / "root"
    shutil.copytree(trained, root)
    stage = make_stage(small_run(name))
    stage.build(stage.run, root)  # type: ignore[attr-defined]
    shapes = set()
    for position in range(4):
        (whole,), pieces = stage.batch(position), stage.batch(position, 2)
        counts = [stage.counts(piece) for piece in pieces]
        for key, expected in stage.counts(whole).items():
            # Balance counts the padding of more, smaller rows too.
            if key != "balance":
                assert sum(int(c[key]) for c in counts) == int(expected), key
        for piece in pieces:
            tensors = {k: v for k, v in vars(piece).items() if isinstance(v, torch.Tensor)}
            shapes.add(tuple((k, tuple(v.shape)) for k, v in tensors.items()))
            assert sum(v.nbytes for v in tensors.values()) < sum(
                v.nbytes for v in vars(whole).values() if isinstance(v, torch.Tensor)
            )
    assert len(shapes) == 1
