"""How fast data are read, against how fast training takes them: `python -m benchmarks.bench_data [--data small]`.

Files of shards, decoding, the front end, batches of each stage in one process, and a training step of the same stage on
this processor; and an index of ten million items in a process of its own. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import provenance
from benchmarks.train_cases import Case, ours
from muomni.config import RunConfig
from muomni.data import index
from muomni.data.audio import log_mel
from muomni.data.items import Item, Source
from muomni.data.prepared import open_source
from muomni.recipes import recipe
from muomni.train.stages import omni as omni_module
from muomni.train.stages import stage as make_stage

STAGES = ("text", "audio", "vision", "codec", "omni")
"""The Talker's batches need a trained Thinker and codec."""
N_ITEMS = 400
"""Items read for a figure, spread over the training split."""
N_BATCHES = 24
"""Batches made for a figure, after as many that are not counted."""
N_STEPS = 6
N_INDEX = 10_000_000
RESULTS = Path(__file__).with_name("results")

Row = dict[str, Any]


def spread(items: Sequence[Item], n: int) -> list[Item]:
    """At most n items, evenly spaced."""
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """CPU seconds, and what the work says it did."""
    before = time.process_time()
    done = work()
    return time.process_time() - before, done


def reading(source: Source) -> Iterator[Row]:
    """Files, decoding and the front end, by kind."""
    mel = recipe("tiny", "audio").model.mel
    for kind in ("speech", "pictures", "lines"):
        items = spread(source.items(kind, "train"), N_ITEMS)
        if not items:
            continue
        for item in items:
            source.file(item)
        seconds, n_bytes = timed(lambda items=items: sum(len(source.file(item)) for item in items))
        yield _row(f"{kind}: file", len(items), seconds, MB_per_second=n_bytes / 1e6 / seconds)
        if kind == "speech":
            waves: list[np.ndarray] = []

            def decode(items: list[Item] = items, waves: list[np.ndarray] = waves) -> int:
                waves.extend(source.waveform(item) for item in items)  # type: ignore[arg-type]
                return sum(map(len, waves))

            seconds, n_samples = timed(decode)
            yield _row("speech: decode", len(items), seconds, times_real_time=n_samples / 16_000 / seconds)
            seconds, _ = timed(lambda waves=waves: sum(len(log_mel(wave, mel)) for wave in waves))
            yield _row("speech: log-mel", len(items), seconds, times_real_time=n_samples / 16_000 / seconds)
        else:
            seconds, _ = timed(lambda items=items: sum(source.picture(i, side=224).shape[1] for i in items))  # type: ignore[arg-type]
            yield _row(f"{kind}: decode", len(items), seconds)


def _row(what: str, n: int, seconds: float, **more: float) -> Row:
    return {"what": what, "n": n, "per_second": n / seconds, **more}


def feeding(run: RunConfig, root: Path) -> Row:
    """Batches a CPU second, first seen and seen before, against steps a CPU second; of one stage."""
    stage = make_stage(run)
    # A stage's data need no trained parent but the text stage's tokenizer.
    with (
        mock.patch.object(omni_module, "load_parent"),
        mock.patch("muomni.train.stages.vision.parent_checkpoint"),
    ):
        stage.build(run, root)
    stage.batch(0)
    cold = statistics.median(timed(lambda p=p: len(stage.batch(p)))[0] for p in range(1, N_BATCHES + 1))
    warm = statistics.median(timed(lambda p=p: len(stage.batch(p)))[0] for p in range(1, N_BATCHES + 1))
    batches = [stage.batch(position)[0] for position in range(4)]
    case = Case(size=run.model.size, stage=run.stage, kind="full", run=run)
    contender = ours(case, batches, torch.device("cpu"), precision="fp32", name="ours")
    contender.step(0)
    step = min(timed(lambda i=i: contender.step(i) is None)[0] for i in range(1, N_STEPS + 1))
    return {
        "what": f"{run.model.size} {run.stage}", "batch_ms": cold * 1e3, "again_ms": warm * 1e3, "step_ms": step * 1e3,
        "times_faster": step / cold,
    }  # fmt: skip


def large_index(folder: Path) -> None:
    """An index of N_INDEX made-up items."""
    chance = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name, dtype in index.COLUMNS.items():
        most = len(index.KINDS) * len(index.SPLITS) if name == "place" else 60_000
        chance.integers(0, most, N_INDEX).astype(dtype).tofile(folder / f"{name}.bin")


OPEN = """
import os, sys, time
from pathlib import Path
import numpy as np
from muomni.data.index import Index
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
base = resident()
before = time.perf_counter()
found = Index.load(Path(sys.argv[1]))
rows = found.rows("speech", "train")
seconds = time.perf_counter() - before
picked = found.columns["offset"][rows[:: max(1, len(rows) // 1000)]].sum()
print(len(found), len(rows), seconds, (resident() - base) / 2**20)
"""


def opening() -> Row:
    """Seconds and MiB to open the large index and pick one kind of one split, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        large_index(Path(folder) / "index")
        command = [sys.executable, "-c", OPEN, str(Path(folder) / "index")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return {
        "what": "index",
        "items": int(said[0]),
        "picked": int(said[1]),
        "seconds": float(said[2]),
        "MiB": float(said[3]),
    }


def summary(rows: Sequence[Row], about: dict[str, str]) -> str:
    """A page of all figures."""
    lines = ["# Reading data", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    lines += ["| what | items a CPU second | |", "|---|---|---|"]
    for row in rows:
        if "per_second" in row:
            more = "; ".join(
                f"{row[k]:,.1f} {k.replace('_', ' ')}"
                for k in ("MB_per_second", "times_real_time")
                if k in row
            )
            lines.append(f"| {row['what']} | {row['per_second']:,.0f} | {more} |")
    lines += [
        "",
        "| stage | a batch, ms | again, ms | a training step, ms | times faster (goal 2), again |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if "step_ms" in row:
            figures = " | ".join(
                f"{row[k]:,.1f}" for k in ("batch_ms", "again_ms", "step_ms", "times_faster")
            )
            lines.append(f"| {row['what']} | {figures}, {row['step_ms'] / row['again_ms']:,.1f} |")
    for row in rows:
        if row["what"] == "index":
            lines += [
                "",
                f"An index of {row['items']:,} items opens, and one kind of a split ({row['picked']:,} rows) is found, "
                f"in {row['seconds']:.2f} s with {row['MiB']:.0f} MiB (goals 1 s, 200 MB).",
            ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measures, writes benchmarks/results/<date>_data-<device>_<commit>/, prints the summary."""
    parser = argparse.ArgumentParser(prog="benchmarks.bench_data", description=__doc__)
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--sizes", default="nano,tiny")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    source = open_source(arguments.data)
    rows = list(reading(source))
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes.split(","):
            for stage in STAGES:
                run = recipe(size, stage)
                thinker = dataclasses.replace(
                    run.model.thinker, vocab_size=min(4_096, run.model.thinker.vocab_size)
                )
                model = dataclasses.replace(run.model, thinker=thinker)
                run = dataclasses.replace(run, model=model, data=arguments.data)
                rows.append(feeding(run, Path(folder) / size))
    rows.append(opening())
    about = {
        "device": provenance.device_name("cpu"), "data": arguments.data, "torch": torch.__version__,
        "commit": provenance.commit(), "command": f"python -m benchmarks.bench_data {' '.join(argv or sys.argv[1:])}",
    }  # fmt: skip
    page = summary(rows, about)
    print(page)
    device = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    today = datetime.datetime.now(datetime.UTC).date()
    out = arguments.out or RESULTS / f"{today}_data-{device}_{about['commit'].rstrip('+')}"
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    (out / "summary.md").write_text(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
