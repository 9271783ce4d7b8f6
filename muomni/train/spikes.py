"""Which gradient norms are out of the ordinary, judged on the device by a running mean and deviation.

Only accepted steps enter the statistics: one NaN in a rolling window makes every later comparison false.
"""

from __future__ import annotations

import torch


class SpikeGuard:
    """Mean and variance of the gradient norms of accepted steps, in a moving window; nothing is read back."""

    def __init__(self, *, sigma: float, window: int, device: torch.device) -> None:
        """A norm above mean + sigma * deviation is a spike, once `window` steps were accepted."""
        self.sigma, self.window = sigma, window
        self.n, self.mean, self.variance = (torch.zeros((), device=device) for _ in range(3))

    def spiked(self, norm: torch.Tensor) -> torch.Tensor:
        """() bool for a () norm; a norm that is not finite is no spike, it is skipped for another reason."""
        limit = self.mean + self.sigma * self.variance.sqrt()
        return (self.n >= self.window) & (norm.float() > limit) & norm.isfinite()

    def update(self, norm: torch.Tensor, *, accepted: torch.Tensor) -> None:
        """Take a () norm into the statistics where `accepted` () bool is true.

        Weight 1 / n for the first `window` steps (exact mean and variance), 1 / window after: West, 1979.
        """
        share = 1.0 / (self.n + 1.0).clamp(max=self.window)
        change = norm.float() - self.mean
        new = (
            self.n + 1.0,
            self.mean + share * change,
            (1.0 - share) * (self.variance + share * change.square()),
        )
        for old, value in zip((self.n, self.mean, self.variance), new, strict=True):
            old.copy_(torch.where(accepted, value, old))

    def state(self) -> dict[str, torch.Tensor]:
        """The statistics themselves, by name."""
        return {"n": self.n, "mean": self.mean, "variance": self.variance}
