"""Checkpoints written while training goes on: one at a time, in a thread, its errors told to the trainer."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import torch

from muomni.train import checkpoint
from muomni.train.checkpoint import Checkpoint


class Writer:
    """Writes one run's checkpoints. The caller waits for a copy of the tensors, not for hashing and the disk."""

    def __init__(self, stage_dir: Path, *, keep: int) -> None:
        """As `checkpoint.save` takes them."""
        self._stage_dir, self._keep = stage_dir, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, state: Checkpoint) -> None:
        """Copy the tensors to the host and write them behind the caller's back.

        Waits for the write before, if it is still going on: at most one is. Raises what that one raised.
        """
        self.wait()
        copied = Checkpoint(
            weights=_copies(state.weights), optimizer=_copies(state.optimizer), record=state.record
        )
        # Not a daemon: a process that ends finishes its last checkpoint.
        self._thread = threading.Thread(target=self._write, args=(copied,), name="checkpoint writer")
        self._thread.start()

    def wait(self) -> None:
        """Until the last write is on the disk. Raises what it raised: CheckpointError on a full disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait; an error that is on its way already is the one to be told."""
        try:
            self.wait()
        except BaseException:
            if kind is None:
                raise

    def _write(self, state: Checkpoint) -> None:
        try:
            checkpoint.save(self._stage_dir, state, keep=self._keep)
        except BaseException as error:  # told to the trainer by `wait`
            self._error = error


def _copies(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
