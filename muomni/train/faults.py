"""Steps that were left out: counted on the device, and how many of them came in a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from muomni.errors import UserError

MAX_ROLLBACKS = 3
"""Returns to a checkpoint without getting past the place of the last one, after which a run stops."""


class DivergedError(UserError, RuntimeError):
    """A run whose steps were left out again and again, also after it went back."""


class Faults:
    """Counts of one run, () float32 tensors; `add` reads nothing back."""

    def __init__(self, device: torch.device) -> None:
        """Nothing yet."""
        self.skipped, self.spikes, self.bad_in_a_row, self.longest = (
            torch.zeros((), device=device) for _ in range(4)
        )
        self.rollbacks, self.failed_at = 0, 0

    def add(self, bad: torch.Tensor, spiked: torch.Tensor) -> None:
        """Count a step. bad: 1.0 where it was left out, spiked: 1.0 where for the size of its gradient alone."""
        self.skipped += bad - spiked
        self.spikes += spiked
        self.bad_in_a_row.add_(1.0).mul_(bad)
        self.longest.copy_(torch.maximum(self.longest, self.bad_in_a_row))

    def values(self) -> list[torch.Tensor]:
        """skipped, spikes, and the longest run of bad steps since `new_row`."""
        return [self.skipped, self.spikes, self.longest]

    def new_row(self) -> None:
        """Start looking for the longest run anew; a run that goes on keeps its length."""
        self.longest.zero_()

    def record(self) -> dict[str, int]:
        """What a resume needs; reads the device."""
        names = ("skipped", "spikes", "bad_in_a_row")
        values = torch.stack([self.skipped, self.spikes, self.bad_in_a_row]).tolist()
        return {name: int(value) for name, value in zip(names, values, strict=True)}

    def load(self, record: Mapping[str, Any]) -> None:
        """Take over `record` of a checkpoint."""
        for name, tensor in (
            ("skipped", self.skipped),
            ("spikes", self.spikes),
            ("bad_in_a_row", self.bad_in_a_row),
        ):
            tensor.fill_(record.get(name, 0))

    def must_roll_back(self, *, longest: int, step: int, limit: int) -> bool:
        """Whether the row of this step saw `limit` bad steps in a row (0: never).

        A row without any, past the place of the last return, forgets the returns before it.
        """
        if not longest and step > self.failed_at:
            self.rollbacks = 0
        return 0 < limit <= longest

    def rolled_back(self, *, step: int, counted: Mapping[str, int]) -> None:
        """Note a return from this step; what was counted since the checkpoint stays counted."""
        self.rollbacks, self.failed_at = self.rollbacks + 1, step
        self.load({**counted, "bad_in_a_row": 0})
        self.new_row()
