"""Running averages of the parameters, which evaluation and the saved weights use.

Source: Polyak and Juditsky, 1992; the short memory of the first steps is that of TensorFlow's
ExponentialMovingAverage (num_updates).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

WARM_UP = 10
"""The decay after n updates is at most (1 + n) / (WARM_UP + n): the random start is forgotten soon."""


class Average:
    """average <- d * average + (1 - d) * parameter, once an accepted step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, decay: float) -> None:
        """Starts at the parameters' values."""
        self.parameters, self.decay = dict(parameters), decay
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.n_updates = torch.zeros((), device=next(iter(self.values.values())).device)

    @torch.no_grad()
    def update(self, skipped: torch.Tensor) -> None:
        """Move the averages unless `skipped` () is 1; decided on the device."""
        decay = ((1.0 + self.n_updates) / (WARM_UP + self.n_updates)).clamp(max=self.decay)
        share = (1.0 - decay) * (1.0 - skipped)
        # A share of zero leaves the very bits: lerp is average + share * (parameter - average).
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter, share.to(parameter.dtype))
        self.n_updates += 1.0 - skipped

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages in place; twice is nothing."""
        for name, parameter in self.parameters.items():
            trained = parameter.clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(trained)

    @torch.no_grad()
    def restart(self) -> None:
        """Take the parameters' values: a checkpoint's weights are the averages."""
        for name, parameter in self.parameters.items():
            self.values[name].copy_(parameter)
