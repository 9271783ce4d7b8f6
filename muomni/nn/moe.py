"""Feed-forward layers: SwiGLU, and a mixture of SwiGLU experts with a balance loss."""

from __future__ import annotations

import math

import torch
from muomni_kernels import swiglu
from torch import nn

from muomni.nn.init import linear


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one packed projection. Source: Shazeer, 2020."""

    def __init__(self, d_model: int, d_ff: int, *, out_scale: float = 1.0) -> None:
        """d_ff: hidden width."""
        super().__init__()
        self.gate_up = linear(d_model, 2 * d_ff)
        self.down = linear(d_ff, d_model, scale=out_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., d_model) -> the same shape."""
        return self.down(swiglu(self.gate_up(x)))


class MoE(nn.Module):
    """Each token goes to its n_active most likely experts, weighted by their renormalised probabilities.

    Every expert is computed on every token and the unchosen ones are multiplied by zero: the reference
    computation, exact and of static shape. Sources: Shazeer et al., 2017; Fedus et al., 2021 (balance).
    """

    def __init__(
        self, d_model: int, d_ff: int, *, n_experts: int, n_active: int, out_scale: float = 1.0
    ) -> None:
        """Raises ValueError unless 1 <= n_active <= n_experts."""
        super().__init__()
        if not 1 <= n_active <= n_experts:
            raise ValueError(f"n_active: expected 1 to n_experts {n_experts}, got {n_active}.")
        self.n_active = n_active
        self.router = linear(d_model, n_experts)
        self.gate_up = nn.Parameter(torch.randn(n_experts, d_model, 2 * d_ff) / math.sqrt(d_model))
        self.down = nn.Parameter(torch.randn(n_experts, d_ff, d_model) * (out_scale / math.sqrt(d_ff)))
        self._balance: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., d_model) -> the same shape. Keeps the balance loss of these tokens."""
        rows = x.reshape(-1, x.shape[-1])
        probabilities = self.router(rows).float().softmax(-1)
        best, chosen = probabilities.topk(self.n_active, dim=-1)
        gates = torch.zeros_like(probabilities).scatter(1, chosen, best / best.sum(-1, keepdim=True))
        hidden = swiglu(torch.einsum("td,edf->tef", rows, self.gate_up))
        y = torch.einsum("tef,efd,te->td", hidden, self.down, gates.to(rows.dtype))
        share = (gates > 0).float().mean(0) / self.n_active
        self._balance = len(self.down) * (share * probabilities.mean(0)).sum()
        return y.reshape(x.shape)

    def balance_loss(self) -> torch.Tensor:
        """() n_experts * sum over experts of share of tokens * mean probability, last forward; 1 is balanced.

        Raises ValueError before the first forward.
        """
        if self._balance is None:
            raise ValueError("balance_loss: there was no forward yet; call the layer first.")
        return self._balance
