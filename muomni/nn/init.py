"""Initial weights: normal with standard deviation scale / sqrt(fan-in), so unit input gives unit output."""

from __future__ import annotations

import math

import torch
from torch import nn


def init_linear(linear: nn.Linear, *, scale: float = 1.0) -> nn.Linear:
    """Draw a linear layer's weight in place, zero its bias, and return it.

    scale: residual outputs take 1 / sqrt(2 * n_layers), so that the residual stream keeps unit scale.
    """
    nn.init.normal_(linear.weight, std=scale / math.sqrt(linear.in_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def linear(d_in: int, d_out: int, *, bias: bool = False, scale: float = 1.0) -> nn.Linear:
    """A linear layer with initial weights of `init_linear`."""
    return init_linear(nn.Linear(d_in, d_out, bias=bias), scale=scale)


def table(n_rows: int, d: int, *, std: float) -> nn.Parameter:
    """A table of normal rows, (n_rows, d)."""
    return nn.Parameter(torch.randn(n_rows, d) * std)
