"""A checkpoint is whole or it is not there: kills, a full disk, damage, pruning."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni.models import weights
from muomni.models.weights import CheckpointError, newest_complete
from muomni.train import checkpoint
from muomni.train.writer import Writer

sys.path.insert(0, str(Path(__file__).parent))
from chaos import kill_savers, numbered, the_step

FILES = ("weights.safetensors", "optimizer.safetensors", "run.json", "MANIFEST.json")


def test_forty_kills_during_saves_lose_no_finished_checkpoint(tmp_path: Path) -> None:
    assert kill_savers(tmp_path, kills=40) > 40


def test_full_disk_is_one_clear_error_and_leaves_the_previousnumbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, numbered(1), keep=2)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"no space left.*step-00000001 is intact") as error:
        checkpoint.save(tmp_path, numbered(2), keep=2)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    found = checkpoint.load(tmp_path)
    assert found is not None and found.record["step"] == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(tmp_path, numbered(step), keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, numbered(1), keep=2)
    (path / "optimizer.safetensors").write_bytes(b"")
    assert newest_complete(tmp_path) is None
    checkpoint.save(tmp_path, numbered(1), keep=2)
    assert checkpoint.newest_step(tmp_path) == 1


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A stage with the checkpoints of steps 1 and 2."""
    for step in (1, 2):
        checkpoint.save(tmp_path, numbered(step), keep=2)
    return tmp_path


def falls_back(stage_dir: Path) -> bool:
    """Whether the newest checkpoint is passed over with one line, and the one before is taken."""
    skipped: list[str] = []
    found = newest_complete(stage_dir, skipped=skipped)
    return (
        found is not None and found.name == "step-00000001" and len(skipped) == 1 and "\n" not in skipped[0]
    )


def test_a_thousand_flipped_bits_are_all_noticed(two: Path) -> None:
    newest = two / "checkpoints" / "step-00000002"
    draw = torch.Generator().manual_seed(0)
    missed = []
    for n in range(1_000):
        path = newest / FILES[n % 3]
        whole = path.read_bytes()
        at = int(torch.randint(len(whole) * 8, (), generator=draw))
        torn = bytearray(whole)
        torn[at // 8] ^= 1 << at % 8
        path.write_bytes(torn)
        if not falls_back(two):
            missed.append((path.name, at))
        path.write_bytes(whole)
    assert missed == []
    assert newest_complete(two) == newest


def test_a_changed_manifest_never_makes_a_wrong_checkpoint_right(two: Path) -> None:
    newest = two / "checkpoints" / "step-00000002"
    path = newest / "MANIFEST.json"
    whole = path.read_bytes()
    for at in range(0, len(whole) * 8, 7):
        torn = bytearray(whole)
        torn[at // 8] ^= 1 << at % 8
        path.write_bytes(torn)
        # White space and the case of a hexadecimal digit may change without changing what is said.
        assert falls_back(two) or newest_complete(two) == newest
    path.write_bytes(whole)


def test_a_hundred_truncations_are_all_noticed(two: Path) -> None:
    newest = two / "checkpoints" / "step-00000002"
    draw = torch.Generator().manual_seed(1)
    for n in range(100):
        path = newest / FILES[n % 4]
        whole = path.read_bytes()
        # The manifest ends in a newline that says nothing.
        path.write_bytes(whole[: int(torch.randint(len(whole) - 1, (), generator=draw))])
        assert falls_back(two), (path.name, path.stat().st_size)
        path.write_bytes(whole)


def test_missing_and_swapped_files_are_noticed(two: Path, tmp_path: Path) -> None:
    newest, before = (two / "checkpoints" / f"step-0000000{n}" for n in (2, 1))
    changes: list[Callable[[], Any]] = []
    for name in FILES:
        changes.append(lambda name=name: (newest / name).unlink())
        changes.append(lambda name=name: (newest / name).write_bytes(b""))
    for name in FILES[:3]:
        changes.append(lambda name=name: shutil.copy(before / name, newest / name))
        changes.append(lambda name=name: (newest / name).rename(newest / f"{name}.old"))
        changes.append(lambda name=name: shutil.copy(newest / name, newest / f"another {name}"))
    changes.append(lambda: shutil.copy(newest / FILES[0], newest / FILES[1]))
    changes.append(lambda: shutil.copy(newest / FILES[1], newest / FILES[0]))
    changes.append(lambda: shutil.copy(before / "MANIFEST.json", newest / "MANIFEST.json"))
    assert len(changes) == 20
    kept = tmp_path / "kept"
    shutil.copytree(newest, kept)
    for change in changes:
        change()
        assert falls_back(two)
        shutil.rmtree(newest)
        shutil.copytree(kept, newest)
        assert newest_complete(two) == newest


class Crash(BaseException):
    """A process that ends here."""


@contextmanager
def crashing(number: int, *, after: bool) -> Iterator[list[str]]:
    """Ends file operation `number` of a save before or after it is done; collects the names of those begun."""
    begun: list[str] = []
    patch = pytest.MonkeyPatch()

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def operation(*args: Any, **kwargs: Any) -> Any:
            mine = len(begun)
            begun.append(name)
            if mine == number and not after:
                raise Crash
            try:
                return real(*args, **kwargs)
            finally:
                if mine == number:
                    raise Crash

        patch.setattr(owner, name, operation)

    for owner, name in (
        (os, "fsync"), (os, "mkdir"), (os, "rename"), (weights, "save_file"), (shutil, "rmtree"), (Path, "write_text"),
    ):  # fmt: skip
        wrap(owner, name)
    try:
        yield begun
    except Crash:
        pass
    finally:
        patch.undo()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_around_any_file_operation_leaves_a_whole_checkpoint(tmp_path: Path, after: bool) -> None:
    with crashing(-1, after=after) as operations:
        for step in (1, 2, 3):
            before = len(operations)
            checkpoint.save(tmp_path / "count", numbered(step), keep=2)
    assert {"fsync", "mkdir", "rename", "save_file", "write_text", "rmtree"} <= set(operations)
    n_operations = len(operations) - before
    assert n_operations >= 12
    for number in range(n_operations):
        stage_dir = tmp_path / str(number)
        for step in (1, 2):
            checkpoint.save(stage_dir, numbered(step), keep=2)
        with crashing(number, after=after) as begun:
            checkpoint.save(stage_dir, numbered(3), keep=2)
        assert len(begun) == number + 1
        found = checkpoint.load(stage_dir)
        assert found is not None and the_step(found) in (2, 3)
        checkpoint.save(stage_dir, numbered(4), keep=2)
        found = checkpoint.load(stage_dir)
        assert found is not None and the_step(found) == 4
        assert len(list((stage_dir / "checkpoints").iterdir())) == 2


def test_a_writer_leaves_hashing_and_the_disk_to_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        threads.add(threading.get_ident())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    writer, state = Writer(tmp_path, keep=2), numbered(1)
    writer.start(state)
    # What is written is what was there: the next step changes the tensors meanwhile.
    for value in (*state.weights.values(), *state.optimizer.values()):
        value.fill_(99.0)
    writer.wait()
    found = checkpoint.load(tmp_path)
    assert found is not None and the_step(found) == 1
    assert threads and threading.get_ident() not in threads


def test_a_writer_writes_one_at_a_time_and_in_order(tmp_path: Path) -> None:
    writer = Writer(tmp_path, keep=2)
    for step in range(1, 6):
        writer.start(numbered(step))
    writer.wait()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]
    writer.wait()  # nothing to wait for


def test_a_writer_tells_of_a_full_disk_when_it_is_asked_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = Writer(tmp_path, keep=2)
    writer.start(numbered(1))
    writer.wait()
    monkeypatch.setattr(os, "fsync", full)
    writer.start(numbered(2))
    with pytest.raises(CheckpointError, match="step-00000001 is intact"):
        writer.wait()
    monkeypatch.undo()
    writer.start(numbered(3))
    writer.wait()
    assert checkpoint.newest_step(tmp_path) == 3
