"""Residual vector quantisation with codebooks learned by moving averages.

Sources: van den Oord et al., 2017 (straight-through, commitment, moving averages); Zeghidour et al.,
SoundStream, 2021 (residual levels, codebook dropout, replacement of dead codes).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from muomni_kernels import vq_nearest
from torch import nn
from torch.nn import functional as F

DEAD_SHARE = 0.2
"""A code whose moving average is below this share of the mean code's is dead."""
WARM_UP = 20
"""The decay after n commits is at most (1 + n) / (WARM_UP + n)."""
LLOYD_STEPS = 8
"""k-means passes of the initialisation."""


class Quantised(NamedTuple):
    """What a forward of ResidualVQ gives."""

    quantised: torch.Tensor
    """(N, d): sum of the active levels' codewords; its gradient goes to z unchanged."""
    codes: torch.Tensor
    """(N, K) int64, of all levels, active or not."""
    commitment: torch.Tensor
    """() sum over valid rows of the squared distance of z to its quantisation, mean of axes and levels."""


class ResidualVQ(nn.Module):
    """n_codebooks levels; each quantises what the levels before it left.

    In train mode a forward adds its statistics to buffers; `commit` applies them once a step, so that one
    batch and any split of it into micro-batches move the codebooks alike. The first commit starts the
    codebooks by k-means over the vectors it was given.
    """

    codebooks: torch.Tensor
    mean_counts: torch.Tensor
    mean_sums: torch.Tensor
    n_commits: torch.Tensor

    def __init__(self, latent_dim: int, *, n_codebooks: int, codebook_size: int, ema_decay: float) -> None:
        """latent_dim: width of the vectors; ema_decay: decay of counts and sums a step."""
        super().__init__()
        self.n_codebooks, self.codebook_size, self.ema_decay = n_codebooks, codebook_size, ema_decay
        shape = (n_codebooks, codebook_size)
        self.register_buffer("codebooks", torch.randn(*shape, latent_dim) * 0.1)
        self.register_buffer("mean_counts", torch.zeros(shape))
        self.register_buffer("mean_sums", torch.zeros(*shape, latent_dim))
        self.register_buffer("n_commits", torch.zeros((), dtype=torch.int64))
        self._pending: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._started = False

    def forward(
        self, z: torch.Tensor, *, n_active: int | None = None, valid: torch.Tensor | None = None
    ) -> Quantised:
        """Quantise z (N, latent_dim).

        n_active: levels that make up the result (codebook dropout); None for all. valid: (N,) bool, rows that
        count for the commitment and the statistics; None for all. In train mode statistics are kept.
        Raises ValueError for n_active outside 1..n_codebooks.
        """
        n_active = self.n_codebooks if n_active is None else n_active
        if not 1 <= n_active <= self.n_codebooks:
            raise ValueError(f"n_active: expected 1 to {self.n_codebooks} codebooks, got {n_active}.")
        wide = z.float()
        codes = self.encode(z)
        totals = self._words(codes).cumsum(1)
        active = totals[:, n_active - 1]
        errors = (wide[:, None] - totals[:, :n_active]).square().mean(-1).sum(1)
        commitment = (errors if valid is None else errors * valid).sum() / n_active
        if self.training:
            rows = torch.ones(len(z), device=z.device) if valid is None else valid.float()
            # What each level was given: z less the words of the levels before.
            before = F.pad(totals[:, :-1], (0, 0, 1, 0))
            self._pending.append((wide.detach()[:, None] - before, codes, rows))
        straight = z + (active.to(z.dtype) - z).detach()
        return Quantised(straight, codes, commitment)

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        """z (N, latent_dim) -> codes (N, K) int64, without statistics."""
        return vq_nearest(z.detach(), self.codebooks)[0]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (N, k) int64 of the first k levels -> (N, latent_dim).

        Raises ValueError for more levels than there are.
        """
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= self.n_codebooks:
            raise ValueError(f"codes: expected (N, 1 to {self.n_codebooks}), got {tuple(codes.shape)}.")
        return self._words(codes).sum(1)

    def _words(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (N, k) of the first k levels -> (N, k, latent_dim)."""
        _, size, d = self.codebooks.shape
        levels = torch.arange(codes.shape[1], device=codes.device) * size
        return F.embedding(codes + levels, self.codebooks.view(-1, d))

    @torch.no_grad()
    def commit(self) -> None:
        """Apply the statistics of the forwards since the last commit, if any, and replace dead codes."""
        if not self._pending:
            return
        parts = [torch.cat(part) for part in zip(*self._pending, strict=True)]
        self._pending.clear()
        residuals, codes, rows = parts
        # A step with a non-finite latent is skipped by the loop; it must not reach the codebooks either.
        rows = rows * residuals[:, 0].isfinite().all(-1)
        residuals = residuals.nan_to_num(0.0, 0.0, 0.0)
        # Rows that count come first; the order among them is kept, so splits agree.
        order = torch.argsort(rows, descending=True, stable=True)
        residuals, codes, rows = residuals[order], codes[order], rows[order]
        if not self._started:
            # A look at the device, until a first commit is kept: the loop puts that of a bad step back.
            self._started = bool(self.n_commits > 0)
            if not self._started:
                residuals, codes = self._start(residuals[:, 0], rows)
        counts, sums = self._statistics(residuals, codes, rows)
        # A short memory at first: the encoder moves fast, and averages over the past would trail behind it.
        keep = ((1.0 + self.n_commits) / (WARM_UP + self.n_commits)).clamp(max=self.ema_decay)
        self.mean_counts.lerp_(counts, 1.0 - keep)
        self.mean_sums.lerp_(sums, 1.0 - keep)
        self._replace_dead(residuals, rows)
        self.codebooks.copy_(self.mean_sums / self.mean_counts[..., None].clamp(min=1e-8))
        self.n_commits.add_(1)

    def usage(self) -> dict[str, torch.Tensor]:
        """Per level (K,): perplexity of the moving averages, and the share of codes that are alive."""
        share = self.mean_counts / self.mean_counts.sum(-1, keepdim=True).clamp(min=1e-8)
        entropy = -(share * share.clamp(min=1e-12).log()).sum(-1)
        return {"perplexity": entropy.exp(), "used": (~self._dead()).float().mean(-1)}

    def _dead(self) -> torch.Tensor:
        return self.mean_counts < DEAD_SHARE * self.mean_counts.mean(-1, keepdim=True)

    def _statistics(
        self, residuals: torch.Tensor, codes: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts (K, S) and sums (K, S, d) of the rows that count."""
        n_levels, size, d = self.codebooks.shape
        flat = (codes + torch.arange(n_levels, device=codes.device) * size).reshape(-1)
        weight = rows[:, None].expand(-1, n_levels).reshape(-1)
        counts = residuals.new_zeros(n_levels * size).index_add(0, flat, weight)
        sums = residuals.new_zeros(n_levels * size, d).index_add(
            0, flat, residuals.reshape(-1, d) * weight[:, None]
        )
        return counts.view(n_levels, size), sums.view(n_levels, size, d)

    def _replace_dead(self, residuals: torch.Tensor, rows: torch.Tensor) -> None:
        """Put each level's dead codes onto this step's vectors of that level, spread over the batch."""
        dead, n_levels = self._dead(), len(self.codebooks)
        rank = dead.cumsum(-1) - 1
        # A stride near the golden section takes far-apart frames; the offset changes with the step.
        n_valid = rows.sum().long().clamp(min=1)
        stride = (n_valid * 0.618).long().clamp(min=1)
        picks = (self.n_commits * 7_919 + rank * stride) % n_valid
        vectors = residuals[picks, torch.arange(n_levels, device=picks.device)[:, None]]
        mean = self.mean_counts.mean(-1, keepdim=True)
        replaced = dead & (rows.sum() > 0)
        self.mean_counts.copy_(torch.where(replaced, mean, self.mean_counts))
        self.mean_sums.copy_(torch.where(replaced[..., None], vectors * mean[..., None], self.mean_sums))

    def _start(self, z: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """k-means, level by level; returns residuals (N, K, d) and codes (N, K) under the new codebooks."""
        n_valid = int(rows.sum())
        size = self.codebook_size
        residual, residuals, codes = z, [], []
        for level in range(self.n_codebooks):
            valid = residual[:n_valid] if n_valid else residual
            picks = torch.arange(size, device=z.device)
            # With fewer vectors than codes the rest repeats with a little noise and is replaced once dead.
            spread = (picks * max(1, len(valid) // size)) % len(valid)
            noise = torch.sin(picks[:, None] * 12.9898 + torch.arange(z.shape[1], device=z.device) * 78.233)
            codebook = valid[spread] + 0.05 * valid.std(0) * noise * (picks >= len(valid))[:, None]
            for _ in range(LLOYD_STEPS):
                chosen = vq_nearest(valid, codebook[None])[0][:, 0]
                counts = valid.new_zeros(size).index_add(0, chosen, valid.new_ones(len(valid)))
                sums = torch.zeros_like(codebook).index_add(0, chosen, valid)
                codebook = torch.where((counts > 0)[:, None], sums / counts.clamp(min=1.0)[:, None], codebook)
            self.codebooks[level] = codebook
            chosen = vq_nearest(residual, codebook[None])[0][:, 0]
            residuals.append(residual)
            codes.append(chosen)
            residual = residual - codebook[chosen]
        # Averages as if every code had been used equally so far: none is dead at once.
        mean = max(n_valid, 1) / size
        self.mean_counts.fill_(mean)
        self.mean_sums.copy_(self.codebooks * mean)
        return torch.stack(residuals, dim=1), torch.stack(codes, dim=1)
