"""Runs a function in several processes that train together, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from muomni.config import RunConfig
from muomni.data import embedded
from muomni.errors import ToldError, UserError
from muomni.train import world
from muomni.train.loop import Result, train
from muomni.train.stages import stage

SPLITS = ("train", "validation", "test")
# Imported once, for all processes of all tests.
_STAGES = ("text", "audio", "vision", "codec", "omni", "talker")
_PRELOAD = ["together", "muomni.train.sharded", *(f"muomni.train.stages.{s}" for s in _STAGES)]

Items = Mapping[str, Mapping[str, Any]]
"""Items of each kind of the embedded set, by split."""


def items() -> Items:
    """The embedded set as it is in this process."""
    kinds = ("speech", "questions", "pictures", "conversations")
    return {kind: {split: embedded.SET.items(kind, split) for split in SPLITS} for kind in kinds}


def train_stage(run: RunConfig, root: Path) -> Result:
    """Train a stage."""
    return train(stage(run), run, root)


def train_stages(runs: Sequence[RunConfig], root: Path, items: Items) -> None:
    """Train stages one after another on such items."""
    embedded.SET.items = lambda kind, split: items[kind][split] if kind in items else []
    for run in runs:
        train_stage(run, root)


def start(n: int, function: Callable[..., Any], *arguments: Any, out: Path) -> list[Any]:
    """Start n processes; each runs the function inside `Joined` and writes what it says into out/said-<rank>."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    port = _free_port()
    out.mkdir(parents=True, exist_ok=True)
    processes = [
        context.Process(target=_run, args=(rank, n, port, out, function, arguments)) for rank in range(n)
    ]
    for process in processes:
        process.start()
    return processes


def _free_port() -> int:
    """A port below those the system gives out, or another test's process may have it before ours listens."""
    while True:
        port = random.SystemRandom().randrange(20_000, 29_000)
        with socket.socket() as free:
            if free.connect_ex(("127.0.0.1", port)):
                return port


def finish(processes: list[Any]) -> list[int]:
    """Their exit codes."""
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "a process hangs"
    return [process.exitcode for process in processes]


def kill(processes: list[Any]) -> list[int]:
    """Kill them all; their exit codes."""
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    return finish(processes)


def said(out: Path) -> list[str]:
    """What the processes told the user, in the order of their numbers."""
    return [text for path in sorted(out.glob("said-*")) if (text := path.read_text())]


def together(n: int, function: Callable[..., Any], *arguments: Any, out: Path) -> list[int]:
    """`start` and `finish`."""
    return finish(start(n, function, *arguments, out=out))


def _run(
    rank: int, n: int, port: int, out: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    told = out / f"said-{rank}"
    told.write_text("")
    try:
        with world.Joined():
            function(*arguments)
    except ToldError as error:
        sys.exit(75 if error.interrupted else 2)
    except (UserError, KeyboardInterrupt) as error:
        told.write_text(str(error))
        sys.exit(75 if isinstance(error, KeyboardInterrupt) else 2)
