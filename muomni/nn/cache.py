"""KV cache of fixed size: keys and values of every layer, and how far each sequence has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class CacheLayer:
    """One layer's part of a KVCache: views, written in place."""

    k: torch.Tensor
    """(B, max_len + 1, Hkv, D)."""
    v: torch.Tensor
    """(B, max_len + 1, Hkv, D)."""
    lengths: torch.Tensor
    """(B,) int32: positions before this step."""

    def append(self, k: torch.Tensor, v: torch.Tensor, *, late_keys: bool = False) -> torch.Tensor:
        """Write (B, Tq, Hkv, D) behind each sequence's end; returns the lengths with them, (B,) int32.

        late_keys: keys go one place further, and each value stands beside the key before it.
        """
        rows, columns = _behind(self.lengths, k.shape[1])
        self.k[rows, columns + late_keys] = k
        self.v[rows, columns] = v
        return self.lengths + k.shape[1]


def _behind(lengths: torch.Tensor, n_new: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (B, 1) and columns (B, n_new) of new positions behind each sequence's end."""
    rows = torch.arange(len(lengths), device=lengths.device)[:, None]
    return rows, lengths[:, None].long() + torch.arange(n_new, device=lengths.device)


class KVCache:
    """Preallocated keys, values and inputs. The layers of one step all append, then `advance` is called once.

    Nothing is moved or allocated after the start, so that a step can be recorded and replayed. All of it belongs to a
    position: what is behind a sequence's end is never read.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        max_len: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        d_inputs: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate (n_layers, batch, max_len + 1, n_kv_heads, head_dim) twice, empty.

        The place behind the last position is for a late key. d_inputs: width of the inputs that are kept too, for a
        stack whose first rows are mixed with those before them.
        """
        shape = (n_layers, batch, max_len + 1, n_kv_heads, head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.inputs = torch.zeros((batch, max_len, d_inputs), device=device, dtype=dtype)
        """(B, max_len, d_inputs)."""
        self.used = np.zeros(batch, np.int32)
        """(B,) positions of each sequence, known without asking the device."""
        # On a CPU they are one memory.
        self.lengths = torch.from_numpy(self.used).to(device)
        """(B,) int32, the same on the device."""
        self.max_len = max_len

    @property
    def batch(self) -> int:
        """Sequences."""
        return len(self.used)

    @property
    def longest(self) -> int:
        """Positions of the longest sequence."""
        return int(self.used.max(initial=0))

    def row(self, index: int) -> KVCache:
        """One sequence as a cache of its own: the same memory."""
        row = object.__new__(KVCache)
        row.k, row.v = self.k[:, index : index + 1], self.v[:, index : index + 1]
        row.inputs = self.inputs[index : index + 1]
        row.used, row.lengths = self.used[index : index + 1], self.lengths[index : index + 1]
        row.max_len = self.max_len
        return row

    def reserve(self, n_new: int, rows: Sequence[int] | None = None) -> None:
        """Check that n_new more positions of some sequences, or all, fit. Raises ValueError when they do not."""
        longest = self.longest if rows is None else max((int(self.used[row]) for row in rows), default=0)
        if longest + n_new > self.max_len:
            raise ValueError(
                f"cache: {longest} positions are used, {n_new} more do not fit in {self.max_len}; "
                "make the cache longer or the sequence shorter."
            )

    def append_inputs(self, x: torch.Tensor, *, n_past: int) -> list[torch.Tensor]:
        """Write inputs (B, Tq, d_inputs) behind each sequence's end; returns those 1..n_past positions before each.

        Zeros before the start.
        """
        rows, columns = _behind(self.lengths, x.shape[1])
        self.inputs[rows, columns] = x
        past = [columns - j for j in range(1, n_past + 1)]
        return [self.inputs[rows, at.clamp(min=0)] * (at >= 0)[..., None] for at in past]

    def layer(self, index: int) -> CacheLayer:
        """Layer `index`, to append to."""
        return CacheLayer(self.k[index], self.v[index], self.lengths)

    def advance(self, n_new: int, rows: Sequence[int] | None = None) -> None:
        """Count n_new appended positions in some sequences, or all."""
        for row in range(self.batch) if rows is None else rows:
            self.used[row] += n_new
        if self.lengths.device.type != "cpu":
            # On the device alone, and so part of what is recorded.
            for lengths in [self.lengths] if rows is None else [self.lengths[row : row + 1] for row in rows]:
                lengths += n_new

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what is behind the given length of each sequence: padding of a prefill, a discarded turn."""
        self.used[:] = lengths
        self._tell()

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.used[:] = 0
        # Without a word from the host, so that it can be recorded; on a CPU the same memory again.
        self.lengths.zero_()

    def recorded(self, n_rows: int, moving: torch.Tensor) -> KVCache:
        """The first rows as a step sees them that is recorded and replayed: the same memory.

        moving: (n_rows,) int32 on the device, 1 for rows that a replay moves on and 0 for those that it writes behind
        the end of. The host is told nothing: `count` tells it.
        """
        view = object.__new__(_Recorded)
        view.k, view.v, view.inputs = self.k[:, :n_rows], self.v[:, :n_rows], self.inputs[:n_rows]
        view.used, view.lengths, view.max_len = self.used[:n_rows], self.lengths[:n_rows], self.max_len
        view.moving = moving
        return view

    def count(self, rows: Sequence[int]) -> None:
        """Tell the host of one position more in some sequences, by which a replay has moved them on."""
        # On a CPU it knows.
        for row in rows if self.lengths.device.type != "cpu" else ():
            self.used[row] += 1

    def _tell(self) -> None:
        if self.lengths.device.type != "cpu":
            self.lengths.copy_(torch.from_numpy(self.used), non_blocking=True)


class _Recorded(KVCache):
    """See KVCache.recorded."""

    moving: torch.Tensor

    def reserve(self, n_new: int, rows: Sequence[int] | None = None) -> None:
        """Whoever replays the step has to know."""

    def advance(self, n_new: int, rows: Sequence[int] | None = None) -> None:
        """On the device, where it moves on."""
        self.lengths += n_new * self.moving
