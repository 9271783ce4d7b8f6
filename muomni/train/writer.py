"""Checkpoints written while training goes on: one at a time, by a thread, its errors told to the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
from pathlib import Path

import torch

from muomni.train import checkpoint
from muomni.train.checkpoint import Checkpoint


class Form:
    """How a checkpoint is copied and written."""

    def copies(self, state: Checkpoint) -> Checkpoint:
        """The tensors on the host; training goes on with its own."""
        return Checkpoint(
            weights=_copies(state.weights), optimizer=_copies(state.optimizer), record=state.record
        )

    def save(self, stage_dir: Path, state: Checkpoint, *, keep: int) -> Path:
        """`checkpoint.save` of what `copies` gave."""
        return checkpoint.save(stage_dir, state, keep=keep)


class Writer:
    """Writes one run's checkpoints. The caller waits for a copy of the tensors, not for hashing and the disk."""

    def __init__(self, stage_dir: Path, *, keep: int, form: Form | None = None) -> None:
        """As `checkpoint.save` takes them. form: whole tensors of one process by default."""
        self._stage_dir, self._keep = stage_dir, keep
        self._form = form or Form()
        # Its thread is joined when the process ends: a checkpoint that was begun is finished.
        self._executor = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._write: futures.Future[Path] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait; an error that is on its way already is the one to be told."""
        if kind is None:
            self.wait()
        elif self._write is not None:
            futures.wait([self._write])

    def start(self, state: Checkpoint) -> None:
        """Copy the tensors to the host and write them behind the caller's back.

        Waits for the write before, if it is still going on: at most one is. Raises what that one raised.
        """
        self.wait()
        copied = self._form.copies(state)
        self._write = self._executor.submit(self._form.save, self._stage_dir, copied, keep=self._keep)

    def wait(self) -> None:
        """Until the last write is on the disk. Raises what it raised: CheckpointError on a full disk."""
        write, self._write = self._write, None
        if write is not None:
            write.result()


def _copies(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
