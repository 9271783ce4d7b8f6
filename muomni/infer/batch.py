"""Continuous batching: answers join while others are being written, and leave when they end; every step is of all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from muomni.infer.decoding import TextDecoder
from muomni.infer.sampling import Sampling
from muomni.tokens import EOS

AHEAD = 8
"""Tokens that an answer may be ahead of its reader, whose own steps carry the others on."""

Ended = Literal["end", "length", "context"]
"""The text ended by itself, at its most tokens, or where the context is full."""


@dataclass(frozen=True)
class Written:
    """A token of an answer, in the cache."""

    token: int
    state: Tensor
    """(d_model,)."""
    embed: Tensor
    """(d_model,)."""


class Ticket(Iterator[Written]):
    """One answer while it is written; asking for its next token makes a step of every answer that has room."""

    def __init__(self, batch: Batch, row: int, first: int, *, n_left: int, room: int) -> None:
        """first: its first token, chosen and not in the cache; n_left, room: tokens it may have, and has place for."""
        self.row = row
        self.pending = first
        self.ended: Ended | None = None
        self._batch, self._left, self._full = batch, min(n_left, room), room < n_left
        self._written: deque[Written] = deque()
        self._settle()

    @property
    def wants(self) -> bool:
        """Whether a step would do something for it."""
        return self.ended is None and len(self._written) < AHEAD

    @property
    def n_ahead(self) -> int:
        """Tokens that are in the cache and not yet asked for."""
        return len(self._written)

    def push(self, state: Tensor, embed: Tensor, following: int) -> None:
        """The pending token is in the cache, and the one after it chosen."""
        self._written.append(Written(self.pending, state, embed))
        self._left -= 1
        self.pending = following
        self._settle()

    def __next__(self) -> Written:
        """The next token. Raises StopIteration at the end, whose reason is `ended`."""
        while not self._written:
            if self.ended is not None:
                raise StopIteration
            self._batch.step()
        return self._written.popleft()

    def _settle(self) -> None:
        if self.pending == EOS:
            self.ended = "end"
        elif self._left < 1:
            self.ended = "context" if self._full else "length"


class Batch:
    """The answers that are being written."""

    def __init__(self, decoder: TextDecoder) -> None:
        """None yet."""
        self._decoder = decoder
        self._going: list[Ticket] = []
        self.n_steps = 0
        """Steps so far."""

    def join(
        self,
        row: int,
        hidden: Tensor,
        place: int,
        *,
        sampling: Sampling,
        seed: int,
        max_new_tokens: int,
        room: int,
    ) -> Ticket:
        """Begin an answer in a prefilled row.

        hidden: (d_model,) state of its last position; place: rotary position of the first token; room: positions that
        are left.
        """
        self.vacate(row)
        first = self._decoder.begin(row, hidden, place, sampling=sampling, seed=seed)
        ticket = Ticket(self, row, first, n_left=max_new_tokens, room=room)
        if ticket.ended is None:
            self._going.append(ticket)
        return ticket

    def vacate(self, row: int) -> None:
        """Write no more of whatever is being written in a row, which has one writer at a time."""
        self._going = [ticket for ticket in self._going if ticket.row != row]

    def leave(self, ticket: Ticket) -> None:
        """Write no more of an answer."""
        if ticket in self._going:
            self._going.remove(ticket)

    def step(self) -> None:
        """One token more for every answer that has room for it."""
        going = sorted((ticket for ticket in self._going if ticket.wants), key=lambda ticket: ticket.row)
        if not going:
            return
        states, embeds, tokens = self._decoder.step([ticket.row for ticket in going])
        self.n_steps += 1
        for i, ticket in enumerate(going):
            ticket.push(states[i], embeds[i], tokens[i])
            if ticket.ended is not None:
                self.leave(ticket)
