"""The Thinker's cache of several conversations, a row each: prefill one, then steps of all that are being answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from muomni.infer.sampling import Sampler, Sampling
from muomni.models.recording import Record
from muomni.models.thinker import Thinker


class Step(NamedTuple):
    """What a step gives for each of its rows."""

    states: Tensor
    """(B, d_model) of the tokens that were chosen before and are now in the cache."""
    embeds: Tensor
    """(B, d_model) of the same."""
    tokens: list[int]
    """Chosen next, not yet in the cache."""


class TextDecoder:
    """A row is one sequence, and what it gives by the C++ step is what it gives alone, bit for bit.

    With `record` the forward pass of a step is recorded for the first 1, 2, 4 ... rows and replayed: those that are not
    meant are computed too, and left as they are.
    """

    def __init__(
        self,
        thinker: Thinker,
        *,
        n_rows: int,
        max_len: int,
        forbidden: Sequence[int] = (),
        record: Record | None = None,
    ) -> None:
        """n_rows: conversations; max_len: positions of each; forbidden: ids that are never written."""
        self._thinker, self._record = thinker, record
        # A row that is full and not meant writes behind its end all the same.
        self.cache = thinker.new_cache(n_rows, max_len + (record is not None))
        device = self.cache.k.device
        self.sampler = Sampler(n_rows, device=device, forbidden=forbidden)
        self._tokens = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self._places = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self._moving = torch.zeros(n_rows, dtype=torch.int32, device=device)
        self._moved: list[int] = []
        self._recorded: dict[int, _Recorded] = {}

    @torch.inference_mode()
    def prefill(self, row: int, embeds: Tensor, positions: Tensor) -> Tensor:
        """Append (n, d_model) with positions (n, 3) to a row -> hidden states (n, d_model).

        Raises ValueError when they do not fit.
        """
        positions = positions.to(embeds.device)
        if self.cache.k.device.type == "cpu":
            return self._thinker.step(embeds[None], positions[None], self.cache, [row])[0]
        return self._thinker.step(embeds[None], positions[None], self.cache.row(row))[0]

    @torch.inference_mode()
    def begin(self, row: int, hidden: Tensor, place: int, *, sampling: Sampling, seed: int) -> int:
        """Choose a row's first token from the state (d_model,) before it; place: its rotary position."""
        self.sampler.replace(row, sampling, seed=seed)
        chosen = self.sampler(self._thinker.logits(hidden[None]), [row])
        self._tokens[row : row + 1] = chosen
        self._places[row] = place
        return int(chosen)

    @torch.inference_mode()
    def step(self, rows: Sequence[int]) -> Step:
        """Put the token that was chosen last in each row's cache, and choose the next. Raises ValueError when full."""
        self.cache.reserve(1, rows)
        if self._record is None:
            at = torch.tensor(list(rows), device=self._tokens.device)
            embeds = self._thinker.embed(self._tokens[at])
            places = self._places[at][:, None, None].expand(-1, 1, 3)
            states = self._thinker.step(embeds[:, None], places, self.cache, rows)[:, 0]
            chosen = self.sampler(self._thinker.logits(states), rows)
            self._places[at] += 1
        else:
            at, (embeds, states, logits) = self._replayed(rows)
            chosen = self.sampler(logits, rows)
        self._tokens[at] = chosen
        return Step(states, embeds, chosen.tolist())

    @torch.inference_mode()
    def cut(self, row: int, length: int) -> None:
        """Forget what a row's cache holds behind `length` positions."""
        self.cache.row(row).truncate([length])

    def _replayed(self, rows: Sequence[int]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        n = 1 << max(rows).bit_length() if max(rows) else 1
        n = min(n, self.cache.batch)
        if n not in self._recorded:
            assert self._record is not None
            self._moving.zero_()
            self._moved = []
            self._recorded[n] = _Recorded(self, n, self._record)
        if self._moved != list(rows):
            self._moved = list(rows)
            moving = torch.zeros(self.cache.batch, dtype=torch.int32)
            moving[self._moved] = 1
            self._moving.copy_(moving)
        results = self._recorded[n]()
        self.cache.count(rows)
        at = torch.tensor(self._moved, device=self._tokens.device)
        embeds, states, logits = (result[at] for result in results)
        return at, (embeds, states, logits)

    def _forward(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """The first n rows by tensors alone: embeddings, states, logits."""
        moving = self._moving[:n]
        embeds = self._thinker.embed(self._tokens[:n])
        places = self._places[:n, None, None].expand(-1, 1, 3)
        states = self._thinker.step(embeds[:, None], places, self.cache.recorded(n, moving))[:, 0]
        self._places[:n] += moving
        return embeds, states, self._thinker.logits(states)


class _Recorded:
    """The forward pass of the first rows, recorded while none of them moves on."""

    def __init__(self, decoder: TextDecoder, n: int, record: Record) -> None:
        self._results: list[tuple[Tensor, Tensor, Tensor]] = []

        def work() -> None:
            self._results[:] = [decoder._forward(n)]

        self._replay = record(work)

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        """Overwrites what the last call gave."""
        self._replay()
        return self._results[0]
