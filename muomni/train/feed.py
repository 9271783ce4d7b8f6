"""Training micro-batches in order, made ahead by background processes where there are any."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from muomni.errors import UserError
from muomni.train.stage import Stage

WORKERS_ON_CUDA = 2
"""Processes that train.workers = -1 stands for; on a CPU they would take the time of the training itself, unless a core
is left to them, as a speedrun does."""


class _ByPosition(Dataset[Any]):
    def __init__(self, stage: Stage, parts: int) -> None:
        self.stage, self.parts = stage, parts

    def __getitem__(self, position: int) -> list[Any] | UserError:
        try:
            return self.stage.batch(position, self.parts)
        except UserError as error:
            # As a value: a worker's exception would come with its trace in the message.
            return error


class Feed:
    """The pieces of micro-batch `start`, then of `start + stride`, and so on; the order knows no workers."""

    def __init__(
        self, stage: Stage, start: int, *, stride: int = 1, parts: int = 1, n_workers: int, pin: bool
    ) -> None:
        """n_workers: processes, 0 for none. pin: page-locked memory, for a device whose copies do not wait."""
        self.n_workers = n_workers
        self._batches: Iterator[Any] | None = iter(
            DataLoader(
                _ByPosition(stage, parts),
                batch_size=None,
                sampler=itertools.count(start, stride),
                num_workers=n_workers,
                pin_memory=pin,
                worker_init_fn=_ignore_signals if n_workers else None,
                # Forked: the worker has the stage's data without a copy.
                multiprocessing_context="fork" if n_workers else None,
                # The default would draw from the generator that training seeds.
                generator=torch.Generator(),
            )
        )

    def __next__(self) -> list[Any]:
        """The next micro-batch, one or more pieces. Raises UserError for data that cannot be used, a dead worker."""
        if self._batches is None:
            raise ValueError("feed: closed.")
        try:
            found = next(self._batches)
        except RuntimeError as error:
            if (told := died(error)) is not error:
                raise told from error
            raise
        if isinstance(found, UserError):
            raise found
        return found

    def close(self) -> None:
        """Stop the workers."""
        batches, self._batches = self._batches, None
        if self.n_workers and batches is not None:
            # Not left to the last reference, which may be an exception's traceback: workers that nobody told to end are
            # sent SIGTERM when the interpreter ends, which they ignore, and waited for.
            made: Any = batches
            made._shutdown_workers()
            for worker in made._workers:
                worker.kill()


def died(error: RuntimeError) -> RuntimeError:
    """A UserError where the error tells of a dead worker, which it may do anywhere in a step; else the error."""
    if isinstance(error, UserError) or "DataLoader worker" not in str(error):
        return error
    first = str(error).splitlines()[0].rstrip(".")
    return WorkerError(
        f"{first}; the system may have been out of memory. Run again to go on from the last checkpoint, with fewer "
        "train.workers if it happens again."
    )


class WorkerError(UserError, RuntimeError):
    """A background process that made batches has died."""


def n_workers(choice: int, *, device: torch.device) -> int:
    """Processes for train.workers on a device."""
    return choice if choice >= 0 else (WORKERS_ON_CUDA if device.type == "cuda" else 0)


def _ignore_signals(_: int) -> None:
    """A Ctrl-C reaches the whole group; the trainer decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
