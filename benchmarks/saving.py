"""How long training waits for a checkpoint: a save that is waited for, against the start of one in the background.

python -m benchmarks.saving [--size base]: stage omni's own tensors, weights and moments; the two ways in turn, median
(least - most) seconds, and the ratio of the medians. On CUDA if there is one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import provenance
from muomni.recipes import recipe
from muomni.train import checkpoint
from muomni.train.checkpoint import Checkpoint
from muomni.train.optim import Optimizer
from muomni.train.plan import stage_model
from muomni.train.stage import owned
from muomni.train.stages import stage as make_stage
from muomni.train.writer import Writer


def state(size: str, device: str) -> Checkpoint:
    """What stage omni saves."""
    run = recipe(size, "omni")
    stage, model = make_stage(run), stage_model(run).to(device)
    optimizer = Optimizer(stage.parameters(model, "main"), run.optim)
    moments = {f"main/{k}": v for k, v in optimizer.state().items()}
    return Checkpoint(weights=owned(model, stage.saved), optimizer=moments, record={"step": 0})


def measure(saved: Checkpoint, folder: Path, *, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of whole saves, and of the starts of saves behind the caller's back."""
    whole, start = [], []
    with Writer(folder / "background", keep=1) as writer:
        for step in range(rounds):
            now = Checkpoint(weights=saved.weights, optimizer=saved.optimizer, record={"step": step})
            before = time.perf_counter()
            checkpoint.save(folder / "waited", now, keep=1)
            whole.append(time.perf_counter() - before)
            before = time.perf_counter()
            writer.start(now)
            start.append(time.perf_counter() - before)
            writer.wait()
    return whole, start


def main(argv: list[str] | None = None) -> int:
    """Measures, prints."""
    parser = argparse.ArgumentParser(prog="benchmarks.saving", description=__doc__)
    parser.add_argument("--size", default="base")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    saved = state(arguments.size, device)
    n_bytes = sum(t.nbytes for t in (*saved.weights.values(), *saved.optimizer.values()))
    with tempfile.TemporaryDirectory() as folder:
        times = measure(saved, Path(folder), rounds=arguments.rounds)
    print(f"{provenance.device_name(device)}, torch {torch.__version__}, commit {provenance.commit()}")
    print(f"{arguments.size}, stage omni: {n_bytes / 2**20:,.0f} MiB")
    for name, seconds in zip(("waited for", "in the background"), times, strict=True):
        middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
        print(f"{name:<18} {middle:7.3f} s ({low:.3f} - {high:.3f})")
    print(f"training waits {statistics.median(times[1]) / statistics.median(times[0]):.1%} of a whole save")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
