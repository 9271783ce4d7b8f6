"""Who has which row of the cache: conversations keep theirs between turns, until another one needs it."""

from __future__ import annotations

import weakref

from muomni.errors import UserError


class BusyError(UserError, RuntimeError):
    """Every row is in the middle of an answer."""


class Lease:
    """A conversation's claim to a row."""

    def __init__(self) -> None:
        """No row yet."""
        self.row: int | None = None
        """None before the first turn, and again when another conversation took it."""
        self.busy = False
        """An answer is being written in it."""


class Rows:
    """The rows there are. A lease that nobody holds any more gives its row back."""

    def __init__(self, n_rows: int) -> None:
        """All free."""
        self._holders: list[weakref.ref[Lease] | None] = [None] * n_rows
        self._used: list[int] = []

    def take(self, lease: Lease) -> int:
        """The lease's row: its own, else the lowest free one, else that of the idle lease used the longest ago.

        Raises BusyError when there is none.
        """
        if lease.row is None:
            row = self._find()
            before = self._held(row)
            if before is not None:
                before.row = None
            lease.row, self._holders[row] = row, weakref.ref(lease)
        if lease.row in self._used:
            self._used.remove(lease.row)
        self._used.append(lease.row)
        return lease.row

    def _find(self) -> int:
        for row in range(len(self._holders)):
            if self._held(row) is None:
                return row
        for row in self._used:
            held = self._held(row)
            if held is not None and not held.busy:
                return row
        raise BusyError(
            f"engine: all {len(self._holders)} rows are being answered; use up or close a stream, or load with more "
            "(n_rows)."
        )

    def _held(self, row: int) -> Lease | None:
        holder = self._holders[row]
        return None if holder is None else holder()
