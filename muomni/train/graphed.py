"""Work on tensors of fixed shape recorded once and replayed: a CUDA graph leaves the host nothing to launch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch

from muomni.config import OptimConfig, TrainConfig
from muomni.data.batch import to_device, traced
from muomni.errors import UserError
from muomni.models.recording import Record, cuda_record
from muomni.train.stage import Stage

R = TypeVar("R")

DTYPES = {float: torch.float32, int: torch.int64}


class Replay(Generic[R]):
    """A function of a batch and some numbers, recorded: called with others of the same shapes, it gives its result.

    Results are tensors at fixed addresses: the next call overwrites them.
    """

    def __init__(
        self,
        work: Callable[[Any, Mapping[str, torch.Tensor]], R],
        batch: Any,
        numbers: Mapping[str, Any],
        *,
        record: Record,
        device: torch.device,
    ) -> None:
        """Run and record work(batch, numbers); what its runs change is for the caller to put back.

        numbers: int, float or () tensors; the work sees () tensors on the device, int64 or float32.
        """
        self._batch = traced(to_device(batch, device))
        self._numbers = {
            name: torch.zeros((), dtype=DTYPES.get(type(value), getattr(value, "dtype", None)), device=device)
            for name, value in numbers.items()
        }
        self._fill(batch, numbers)
        self._results: list[R] = []

        def run() -> None:
            self._results[:] = [work(self._batch, self._numbers)]

        self._replay = record(run)

    def __call__(self, batch: Any, numbers: Mapping[str, Any]) -> R:
        """Copy in, replay. Raises ValueError for a batch of other shapes."""
        self._fill(batch, numbers)
        self._replay()
        return self._results[0]

    def _fill(self, batch: Any, numbers: Mapping[str, Any]) -> None:
        for name, value in numbers.items():
            self._numbers[name].fill_(value)
        for field in dataclasses.fields(batch) if batch is not None else ():
            kept, value = getattr(self._batch, field.name), getattr(batch, field.name)
            if isinstance(kept, torch.Tensor):
                if kept.shape != value.shape:
                    raise ValueError(
                        f"{field.name}: recorded as {tuple(kept.shape)}, got {tuple(value.shape)}."
                    )
                # On a CPU they may be one.
                if kept is not value:
                    kept.copy_(value, non_blocking=True)


def recorder(
    stage: Stage, train: TrainConfig, *, device: torch.device, alone: bool = True, draws_again: bool = False
) -> Record | None:
    """How train.graph records, or None for eager steps.

    alone: no other process takes part in the run. draws_again: see models.memory.draws_again.

    Raises UserError when graphs are asked for and cannot be.
    """
    why = None
    if device.type != "cuda":
        why = f"needs CUDA, this run is on {device.type}"
    elif not stage.capturable:
        why = f"stage {stage.name} reads lengths on the host"
    elif not alone:
        why = "one process only"
    elif draws_again and train.compile == "off":
        why = "recomputed blocks put dropout's generator back, which a graph cannot without train.compile"
    if train.graph == "on" and why is not None:
        raise UserError(f"train.graph=on: {why}; use auto or off.")
    return cuda_record() if train.graph != "off" and why is None else None


def update_is_capturable(optim: OptimConfig) -> bool:
    """Whether the optimizer's update can be recorded: Muon takes its rate as a number of the host."""
    return optim.name == "adamw"
