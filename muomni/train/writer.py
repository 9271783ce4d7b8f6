"""Checkpoints written while training goes on: one at a time, by a thread, its errors told to the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
from pathlib import Path

import torch

from muomni.train import checkpoint
from muomni.train.checkpoint import Checkpoint


class Form:
    """What this process writes of a checkpoint, and how."""

    def own(self, state: Checkpoint) -> Checkpoint:
        """What of it this process writes; not copied."""
        return state

    def save(self, stage_dir: Path, state: Checkpoint, *, keep: int) -> Path:
        """`checkpoint.save` of a copy of what `own` gave."""
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
        self._copies: dict[str, torch.Tensor] = {}

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

        Waits for the write before, if it is still going on: at most one is. Raises what that one raised. The copies'
        memory is kept for the next ones: fresh pages would cost more than the copying.
        """
        self.wait()
        own = self._form.own(state)
        copied = Checkpoint(
            weights=self._copied("weights", own.weights),
            optimizer=self._copied("optimizer", own.optimizer),
            record=own.record,
        )
        if any(t.is_cuda for t in (*own.weights.values(), *own.optimizer.values())):
            torch.cuda.synchronize()
        self._write = self._executor.submit(self._form.save, self._stage_dir, copied, keep=self._keep)

    def wait(self) -> None:
        """Until the last write is on the disk. Raises what it raised: CheckpointError on a full disk."""
        write, self._write = self._write, None
        if write is not None:
            write.result()

    def _copied(self, group: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        copied: dict[str, torch.Tensor] = {}
        for name, value in state.items():
            key = f"{group}/{name}"
            kept = self._copies.get(key)
            if kept is None or (kept.shape, kept.dtype) != (value.shape, value.dtype):
                # Page-locked, a device writes it without waiting for each tensor.
                kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            copied[name] = self._copies[key] = kept.copy_(value.detach(), non_blocking=True)
        return copied
