"""A checkpoint is whole or it is not there: kills, a full disk, damage, pruning."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from muomni.models.weights import CheckpointError, newest_complete
from muomni.train import checkpoint
from muomni.train.checkpoint import Checkpoint


def _checkpoint(step: int) -> Checkpoint:
    """Every tensor holds the step, so that a mixture of two saves shows."""
    tensors = {f"part.{i}": torch.full((64, 64), float(step)) for i in range(4)}
    return Checkpoint(
        weights=tensors, optimizer={f"main/{k}": v for k, v in tensors.items()}, record={"step": step}
    )


SAVER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoint import _checkpoint
from muomni.train import checkpoint
directory = Path(sys.argv[1])
before = checkpoint.load(directory)
step = before.record["step"] if before else 0
print(step, flush=True)
while True:
    step += 1
    checkpoint.save(directory, _checkpoint(step), keep=2)
    print(step, flush=True)
"""


def test_twenty_kills_during_saves_lose_no_finished_checkpoint(tmp_path: Path) -> None:
    """Saving goes on without a pause in another process, forked without importing torch again for each kill."""
    driver = (
        "import os, sys, torch\n"
        "from muomni.train import checkpoint\n"
        "code = sys.stdin.read()\n"
        "torch.set_num_threads(1)\n"
        "for _ in range(20):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        print('pid', os.getpid(), flush=True)\n"
        "        exec(compile(code, 'saver', 'exec'))\n"
        "    os.waitpid(pid, 0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", driver, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(SAVER.format(tests=str(Path(__file__).parent)))
    process.stdin.close()
    finished = kills = 0
    delays = torch.rand(20, generator=torch.Generator().manual_seed(0)).mul(0.05).tolist()
    for line in process.stdout:
        if not line.startswith("pid"):
            continue
        pid = int(line.split()[1])
        said = [int(process.stdout.readline()), int(process.stdout.readline())]
        time.sleep(delays[kills])  # a random moment within a save
        os.kill(pid, signal.SIGKILL)
        kills += 1
        finished = max(finished, said[-1])
        found = checkpoint.load(tmp_path)
        assert found is not None and found.record["step"] >= finished
        finished = found.record["step"]
        values = {
            float(v.flatten()[i])
            for v in [*found.weights.values(), *found.optimizer.values()]
            for i in (0, -1)
        }
        assert values == {float(finished)}
    process.wait()
    assert kills == 20
    assert finished > 20


def test_full_disk_is_one_clear_error_and_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, _checkpoint(1), keep=2)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"no space left.*step-00000001 is intact") as error:
        checkpoint.save(tmp_path, _checkpoint(2), keep=2)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    found = checkpoint.load(tmp_path)
    assert found is not None and found.record["step"] == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(tmp_path, _checkpoint(step), keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, _checkpoint(1), keep=2)
    (path / "optimizer.safetensors").write_bytes(b"")
    assert newest_complete(tmp_path) is None
    checkpoint.save(tmp_path, _checkpoint(1), keep=2)
    assert checkpoint.newest_step(tmp_path) == 1
