"""Convolutions over time: causal with a streaming state, and depthwise over packed rows without leakage."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from muomni.nn.init import linear
from muomni.nn.rope import segment_ids

TRACE_STD = 0.5
"""Of the initial weights of what came before, beside 1 for the row itself."""


class CausalConv1d(nn.Module):
    """y[t] = sum over j of W[j] x[t - j * dilation] + b, zeros before the start."""

    def __init__(self, d_in: int, d_out: int, *, kernel: int, dilation: int = 1, scale: float = 1.0) -> None:
        """kernel: taps; dilation: rows between taps; scale: on the initial weights."""
        super().__init__()
        self.d_in, self.kernel, self.dilation = d_in, kernel, dilation
        self.taps = linear(kernel * d_in, d_out, bias=True, scale=scale)

    @property
    def n_past(self) -> int:
        """Rows of the past an output needs."""
        return (self.kernel - 1) * self.dilation

    def new_state(self, batch: int, *, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
        """(B, n_past, d_in) zeros: the inputs before the start."""
        return torch.zeros(batch, self.n_past, self.d_in, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, T, d_in) -> (B, T, d_out)."""
        return self._convolve(F.pad(x, (0, 0, self.n_past, 0)), x.shape[1])

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: (B, t, d_in) new rows -> (B, t, d_out) and the next state; the old one is not modified."""
        rows = torch.cat([state, x], dim=1)
        return self._convolve(rows, x.shape[1]), rows[:, rows.shape[1] - self.n_past :]

    def _convolve(self, rows: torch.Tensor, n_out: int) -> torch.Tensor:
        # One matrix product over the taps side by side: on a CPU faster than conv1d, which transposes twice.
        taps = [rows[:, j * self.dilation : j * self.dilation + n_out] for j in range(self.kernel)]
        return self.taps(torch.cat(taps, dim=-1))


def same_document(cu_seqlens: torch.Tensor, n_rows: int, *, kernel: int) -> torch.Tensor:
    """float32 (kernel, n_rows, 1): 1 where row i + j - kernel // 2 is in the document of row i, else 0."""
    ids = segment_ids(cu_seqlens, n_rows)
    half = kernel // 2
    padded = F.pad(ids, (half, half), value=-1)
    return torch.stack([padded[j : j + n_rows] == ids for j in range(kernel)])[..., None].float()


def depthwise_packed(x: torch.Tensor, weight: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """y[i, d] = sum over j of weight[j, d] x[i + j - kernel // 2, d], over rows of the same document only.

    x: (T, D) packed; weight: (kernel, D), kernel odd; same: of `same_document`. Returns (T, D).
    Shifted products beat conv1d and gathers on a CPU at this size (docs/LOG.md).
    """
    n_rows, kernel = x.shape[0], weight.shape[0]
    half = kernel // 2
    padded = F.pad(x, (0, 0, half, half))
    y = x * weight[half]
    for j in range(kernel):
        if j != half:
            y = torch.addcmul(y, padded[j : j + n_rows] * same[j].to(x.dtype), weight[j])
    return y


class PackedConv(nn.Module):
    """Depthwise convolution over a few rows on either side, SiLU, pointwise projection."""

    def __init__(self, d_model: int, *, kernel: int, out_scale: float = 1.0) -> None:
        """kernel: odd number of rows. Raises ValueError for an even one."""
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd number of rows, got {kernel}.")
        self.weight = nn.Parameter(torch.randn(kernel, d_model) / math.sqrt(kernel))
        self.out = linear(d_model, d_model, scale=out_scale)

    def forward(self, x: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        """x: (T, d_model) packed; same: of `same_document` for this kernel. Returns (T, d_model)."""
        return self.out(F.silu(depthwise_packed(x, self.weight, same)))


def earlier_rows(cu_seqlens: torch.Tensor, n_rows: int, *, n: int) -> torch.Tensor:
    """float32 (n, n_rows, 1): 1 where row i - j is in the document of row i, else 0, for j = 1..n."""
    padded = F.pad(ids := segment_ids(cu_seqlens, n_rows), (n, 0), value=-1)
    return torch.stack([padded[n - j : n - j + n_rows] == ids for j in range(1, n + 1)])[..., None].float()


def later(x: torch.Tensor, earlier: torch.Tensor, by: int) -> torch.Tensor:
    """Packed rows (T, D) `by` rows later, zeros at the start of each document. earlier: of `earlier_rows`."""
    return F.pad(x, (0, 0, by, 0))[: len(x)] * earlier[by - 1].to(x.dtype)


class CausalMix(nn.Module):
    """y[t, d] = sum over j of W[j, d] x[t - j, d], zeros before the start: x itself and traces of what came before."""

    def __init__(self, d_model: int, *, kernel: int) -> None:
        """kernel: taps, that of x itself included."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kernel, d_model) * TRACE_STD)
        with torch.no_grad():
            self.weight[0] = 1.0

    def forward(self, x: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
        """x: (T, d_model) packed; earlier: `earlier_rows` of at least kernel - 1 -> (T, d_model)."""
        return self.combine(x, [later(x, earlier, j) for j in range(1, len(self.weight))])

    def combine(self, x: torch.Tensor, past: Sequence[torch.Tensor]) -> torch.Tensor:
        """x: (..., d_model); past: the rows 1, 2, .. before each of them, of the same shape -> the same shape."""
        weight = self.weight.to(x.dtype)
        y = x * weight[0]
        for row, tap in zip(past, weight[1:], strict=True):
            y = torch.addcmul(y, row, tap)
        return y


class CausalDepthwise(nn.Module):
    """y[t, d] = sum over j of W[j, d] x[t - j, d] + b[d], zeros before the start."""

    def __init__(self, d_model: int, *, kernel: int) -> None:
        """kernel: taps."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kernel, d_model) / math.sqrt(kernel))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def new_state(self, batch: int) -> torch.Tensor:
        """(B, kernel - 1, d_model) zeros: the inputs before the start."""
        kernel, d_model = self.weight.shape
        return self.weight.new_zeros(batch, kernel - 1, d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, T, d_model) -> the same shape."""
        return self.step(x, self.new_state(len(x)).to(x.dtype))[0]

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: (B, t, d_model) new rows -> (B, t, d_model) and the next state; the old one is not modified."""
        rows, (kernel, _) = torch.cat([state, x], dim=1), self.weight.shape
        weight, n_out = self.weight.to(x.dtype), x.shape[1]
        y = torch.addcmul(self.bias.to(x.dtype), rows[:, kernel - 1 :], weight[0])
        for j in range(1, kernel):
            y = torch.addcmul(y, rows[:, kernel - 1 - j : kernel - 1 - j + n_out], weight[j])
        return y, rows[:, n_out:]
