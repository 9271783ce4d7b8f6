"""Twenty signals at random moments of a run: each saves, and the end is that of a run without any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from muomni.models.weights import load_weights, newest_complete

STEPS, SIGNALS = 200, 20

# Children are forked, so that torch is imported once. A child says when its first step is done.
DRIVER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_loop import LineStage, _run
from muomni.train.loop import train
torch.set_num_threads(1)
root, draw = Path(sys.argv[1]), random.Random(0)
run = _run({steps}, save_every=50)

def child(ready):
    def slowly(step, steps, row):
        os.write(ready, b".")
        time.sleep(0.001)
    try:
        train(LineStage(run), run, root / "stopped", progress=slowly)
    except KeyboardInterrupt as error:
        os._exit(75 if "saved at step" in str(error) else 1)
    os._exit(0)

for number in range({signals}):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(writer)
    os.close(writer)
    os.read(reader, 1)
    time.sleep(draw.uniform(0.0, 0.01))
    os.kill(pid, (signal.SIGTERM, signal.SIGINT)[number % 2])
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os.close(reader)
train(LineStage(run), run, root / "stopped")
train(LineStage(run), run, root / "straight")
"""


def test_twenty_signals_each_save_and_the_run_ends_as_if_there_had_been_none(tmp_path: Path) -> None:
    code = DRIVER.format(tests=str(Path(__file__).parent), steps=STEPS, signals=SIGNALS)
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], text=True, capture_output=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["75"] * SIGNALS
    ends = []
    for name in ("stopped", "straight"):
        path = newest_complete(tmp_path / name / "text")
        assert path is not None and path.name == f"step-{STEPS:08d}"
        ends.append(load_weights(path / "weights.safetensors") | load_weights(path / "optimizer.safetensors"))
    assert ends[0].keys() == ends[1].keys()
    assert [k for k in ends[0] if not torch.equal(ends[0][k], ends[1][k])] == []
