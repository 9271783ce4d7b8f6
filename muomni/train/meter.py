"""What a row of the log says about speed and memory."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from muomni.train import flops
from muomni.train.stage import Stage
from muomni.train.world import World

_LOG = logging.getLogger(__name__)


class Meter:
    """Counts positions, steps and seconds between two rows. Reads the device at the first step alone."""

    def __init__(
        self,
        stage: Stage,
        model: nn.Module,
        *,
        half: bool = False,
        world: World | None = None,
        whole: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """half: the stage's losses run under bf16 autocast.

        world: the run's processes, whose positions are added up; MFU and memory are this one's. whole: around a use
        of the model outside of training.
        """
        self._stage, self._model, self._half = stage, model, half
        self._world, self._whole = world or World(), whole
        self._device = next(model.parameters()).device
        self._step_flops: int | None = None
        self._counted = False
        self.start()

    def start(self) -> None:
        """Begin a row."""
        self._used = self._room = self._steps = 0
        self._since = time.perf_counter()

    def add(self, pieces: Sequence[Any]) -> None:
        """Count a step that was taken. pieces: its batches; the first step's first is counted for all others."""
        if not self._counted:
            self._counted = True
            with self.apart():
                self._step_flops = self._count(pieces)
        for batch in pieces:
            used, room = self._stage.fill(batch)
            self._used, self._room = self._used + used, self._room + room
        self._steps += 1

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Time inside is no step's: an evaluation, a checkpoint. Waits for the steps before it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def _count(self, pieces: Sequence[Any]) -> int | None:
        try:
            with self._whole():
                one = flops.count(self._stage, self._model, pieces[0], half=self._half).total
        except torch.OutOfMemoryError:
            _LOG.warning("stage %s: no memory to count the step's FLOPs, rows have no MFU.", self._stage.name)
            return None
        flops.gemm_rate(self._device, self._dtype)
        return one * len(pieces)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._half else next(self._model.parameters()).dtype

    def values(self) -> dict[str, float | None]:
        """tokens_per_second, fill_rate, mfu (None where it could not be counted) and memory_mib of the row."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        used, room = map(int, self._world.totals({"used": self._used, "room": self._room}).values())
        mfu = None
        if self._step_flops is not None:
            rate = flops.gemm_rate(self._device, self._dtype)
            mfu = round(self._step_flops * self._steps / seconds / rate, 4)
        return {
            "tokens_per_second": round(used / seconds, 1),
            "fill_rate": round(used / max(room, 1), 4),
            "mfu": mfu,
            "memory_mib": round(peak_memory(self._device) / 2**20, 1),
        }


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process held in tensors on a CUDA device, or in memory at all on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
