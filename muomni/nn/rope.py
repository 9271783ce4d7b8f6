"""Rotary tables, 1-D or time, height and width (TM-RoPE); positions and segments of packed rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def frequency_axes(n_frequencies: int, sections: tuple[int, int, int]) -> list[int]:
    """Which of the three axes each rotary frequency belongs to, interleaved in the ratio of `sections`.

    Interleaving gives every axis low and high frequencies; (2, 1, 1) repeats time, height, time, width.
    Raises ValueError when no section is positive.
    """
    total = sum(sections)
    if total < 1 or min(sections) < 0:
        raise ValueError(f"sections: expected three shares of which one is positive, got {sections}.")
    counts = [0, 0, 0]
    axes: list[int] = []
    for i in range(n_frequencies):
        # The axis furthest behind its share; the first one on a tie.
        lag = [(i + 1) * share - count * total for share, count in zip(sections, counts, strict=True)]
        axis = lag.index(max(lag))
        counts[axis] += 1
        axes.append(axis)
    return axes


def rotary_tables(
    positions: torch.Tensor,
    *,
    head_dim: int,
    theta: float,
    sections: tuple[int, int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position * theta^(-2i / head_dim), float32 (T, head_dim / 2).

    positions: (T,) integers without sections; (T, 3) time, height, width with them. Where the three are
        equal the result is bit for bit that of the 1-D form: each frequency merely chooses its axis.
    Raises ValueError when the shape of positions does not fit.
    """
    n = head_dim // 2
    expected = 1 if sections is None else 2
    if positions.ndim != expected or (sections is not None and positions.shape[1] != 3):
        raise ValueError(
            f"positions: expected {'(T,)' if sections is None else '(T, 3)'}, got {tuple(positions.shape)}."
        )
    exponents = torch.arange(n, device=positions.device, dtype=torch.float32) * (-2.0 / head_dim)
    frequencies = torch.pow(theta, exponents)
    if sections is None:
        chosen = positions[:, None]
    else:
        axes = torch.tensor(frequency_axes(n, sections), device=positions.device)
        chosen = positions[:, axes]
    angles = chosen.float() * frequencies
    return angles.cos(), angles.sin()


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """How a stack's positions turn its heads."""

    head_dim: int
    theta: float
    sections: tuple[int, int, int] | None = None
    """Shares of time, height and width; None for 1-D positions."""

    def tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`rotary_tables` of positions (T,), or (T, 3) with sections."""
        return rotary_tables(positions, head_dim=self.head_dim, theta=self.theta, sections=self.sections)

    @property
    def axes(self) -> list[int]:
        """(head_dim / 2,) the axis of each frequency."""
        n = self.head_dim // 2
        return [0] * n if self.sections is None else frequency_axes(n, self.sections)

    def line(self, n_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of positions 0 to n_positions - 1 on every axis, (n_positions, head_dim / 2)."""
        return rotary_tables(torch.arange(n_positions), head_dim=self.head_dim, theta=self.theta)


def segment_ids(cu_seqlens: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Document of each packed row, int64 (n_rows,); rows after the last document get n_docs."""
    rows = torch.arange(n_rows, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens, rows, right=True) - 1


def packed_positions(cu_seqlens: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Distance of each packed row from the start of its document, int64 (n_rows,)."""
    starts = cu_seqlens.long()[segment_ids(cu_seqlens, n_rows)]
    return torch.arange(n_rows, device=cu_seqlens.device) - starts
