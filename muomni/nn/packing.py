"""Modules that keep a second copy of their weights in the order the CPU's decode step reads them."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch import nn

P = TypeVar("P")


class Packs(nn.Module, Generic[P]):
    """A module with such a copy, which is dropped when its weights may have changed.

    That is when it is put in training mode or moved, or loads a state. Weights changed in place in eval mode are not
    noticed.
    """

    def __init__(self) -> None:
        """Nothing is packed."""
        super().__init__()
        self.packed: P | None = None

    def train(self, mode: bool = True) -> Packs[P]:
        """As nn.Module; weights that are trained are not packed."""
        if mode:
            self.packed = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Packs[P]:
        self.packed = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.packed = None
        super()._load_from_state_dict(*arguments)
