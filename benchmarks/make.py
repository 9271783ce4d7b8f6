"""Seeded arguments on the device they are used on."""

from __future__ import annotations

import torch


def normal(
    device: torch.device, dtype: torch.dtype, seed: int, *shape: int, scale: float = 1.0
) -> torch.Tensor:
    """Normal numbers; never zeros, which run faster than data does."""
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)


def integers(device: torch.device, seed: int, high: int, *shape: int) -> torch.Tensor:
    """Uniform int64 in [0, high)."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(high, shape, generator=generator, device=device)


def angles(device: torch.device, rows: int, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (rows, half) of positions that start again every 512 rows, as in packed documents."""
    positions = torch.arange(rows, device=device) % 512
    frequencies = 10_000.0 ** (-torch.arange(half, device=device) / half)
    table = positions[:, None] * frequencies
    return table.cos(), table.sin()


def documents(device: torch.device, total: int, longest: int) -> torch.Tensor:
    """cu_seqlens int32 of documents of a quarter of `longest` up to it, filling `total` rows."""
    generator = torch.Generator().manual_seed(0)
    ends = [0]
    while ends[-1] < total:
        length = int(torch.randint(max(1, longest // 4), longest + 1, (1,), generator=generator))
        ends.append(min(total, ends[-1] + length))
    return torch.tensor(ends, dtype=torch.int32, device=device)
