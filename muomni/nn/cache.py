"""KV cache of fixed size: keys and values of every layer, and how far each sequence has come."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CacheLayer:
    """One layer's part of a KVCache: views, written in place."""

    k: torch.Tensor
    """(B, Tmax, Hkv, D)."""
    v: torch.Tensor
    """(B, Tmax, Hkv, D)."""
    lengths: torch.Tensor
    """(B,) int32: positions before this step."""

    def append(self, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Write (B, Tq, Hkv, D) behind each sequence's end; returns the lengths with them, (B,) int32."""
        n_batch, n_new = k.shape[:2]
        rows = torch.arange(n_batch, device=k.device)[:, None]
        columns = self.lengths[:, None].long() + torch.arange(n_new, device=k.device)
        self.k[rows, columns] = k
        self.v[rows, columns] = v
        return self.lengths + n_new


class KVCache:
    """Preallocated keys and values. The layers of one step all append, then `advance` is called once."""

    def __init__(
        self,
        n_layers: int,
        batch: int,
        max_len: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate (n_layers, batch, max_len, n_kv_heads, head_dim) twice, empty."""
        shape = (n_layers, batch, max_len, n_kv_heads, head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, device=device, dtype=torch.int32)
        self.max_len = max_len
        self._longest = 0

    @property
    def longest(self) -> int:
        """Positions of the longest sequence, known without asking the device."""
        return self._longest

    def reserve(self, n_new: int) -> None:
        """Check that n_new more positions fit. Raises ValueError when they do not."""
        if self._longest + n_new > self.max_len:
            raise ValueError(
                f"cache: {self._longest} positions are used, {n_new} more do not fit in {self.max_len}; "
                "make the cache longer or the sequence shorter."
            )

    def layer(self, index: int) -> CacheLayer:
        """Layer `index`, to append to."""
        return CacheLayer(self.k[index], self.v[index], self.lengths)

    def advance(self, n_new: int) -> None:
        """Count n_new appended positions in every sequence."""
        self.lengths = self.lengths + n_new
        self._longest += n_new

    def truncate(self, lengths: list[int]) -> None:
        """Forget what is behind the given length of each sequence: padding of a prefill, a discarded turn."""
        self.lengths = torch.tensor(lengths, device=self.lengths.device, dtype=torch.int32)
        self._longest = max(lengths, default=0)

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.lengths = torch.zeros_like(self.lengths)
        self._longest = 0
