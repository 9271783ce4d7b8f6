"""Kills processes in the middle of saving, as often as asked: `python tests/train/chaos.py 300` (`make chaos`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from muomni.train import checkpoint
from muomni.train.checkpoint import Checkpoint


def numbered(step: int) -> Checkpoint:
    """Every tensor holds the step, so that a mixture of two saves shows."""
    tensors = {f"part.{i}": torch.full((64, 64), float(step)) for i in range(4)}
    return Checkpoint(
        weights=tensors, optimizer={f"main/{k}": v for k, v in tensors.items()}, record={"step": step}
    )


def the_step(found: Checkpoint) -> int:
    """The step of a checkpoint of `numbered`. Raises AssertionError when it is a mixture."""
    values = {
        float(v.flatten()[i]) for v in [*found.weights.values(), *found.optimizer.values()] for i in (0, -1)
    }
    assert values == {float(found.record["step"])}, f"a mixture of {sorted(values)}"
    return found.record["step"]


SAVER = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from chaos import numbered
from muomni.train import checkpoint
directory = Path(sys.argv[1])
before = checkpoint.load(directory)
step = before.record["step"] if before else 0
# One write a line: print may take two, and a kill between them would join it to the next saver's first.
os.write(1, b"%d\\n" % step)
while True:
    step += 1
    checkpoint.save(directory, numbered(step), keep=2)
    os.write(1, b"%d\\n" % step)
"""
# Saving goes on without a pause in children, forked without importing torch again for each.
DRIVER = """
import os, sys, torch
from muomni.train import checkpoint
code = sys.stdin.read()
torch.set_num_threads(1)
for _ in range({kills}):
    pid = os.fork()
    if pid == 0:
        os.write(1, b"pid %d\\n" % os.getpid())
        exec(compile(code, "saver", "exec"))
    os.waitpid(pid, 0)
"""


def kill_savers(directory: Path, *, kills: int, seed: int = 0) -> int:
    """Kill so many savers at random moments; after each the newest checkpoint is whole and none is lost.

    Returns the last step. Raises AssertionError for a lost, unusable or mixed checkpoint.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(kills=kills), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(SAVER.format(tests=str(Path(__file__).parent)))
    process.stdin.close()
    delays = torch.rand(kills, generator=torch.Generator().manual_seed(seed)).mul(0.05).tolist()
    finished = done = 0
    for line in process.stdout:
        if not line.startswith("pid"):
            continue
        said = [int(process.stdout.readline()), int(process.stdout.readline())]
        time.sleep(delays[done])  # a random moment within a save
        os.kill(int(line.split()[1]), signal.SIGKILL)
        done += 1
        finished = max(finished, said[-1])
        found = checkpoint.load(directory)
        assert found is not None, "no usable checkpoint is left"
        assert the_step(found) >= finished, f"step {finished} was finished and is lost"
        finished = the_step(found)
    process.wait()
    assert done == kills, f"{done} of {kills} savers ran"
    return finished


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        number = int(sys.argv[1])
        last = kill_savers(Path(folder), kills=number)
        print(f"chaos: {number} kills during saves, {last} steps saved, none unusable, none mixed, none lost")
