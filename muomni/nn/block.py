"""The pre-norm transformer block all parts are built from."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from muomni.nn.attention import Attention
from muomni.nn.cache import CacheLayer
from muomni.nn.conv import PackedConv
from muomni.nn.moe import FeedForward, MoE
from muomni.nn.norm import RMSNorm


class Block(nn.Module):
    """x + attention(norm(x)), then optionally + convolution(norm(x)), then + feed-forward(norm(x))."""

    def __init__(
        self,
        d_model: int,
        *,
        n_layers: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        d_ff: int,
        causal: bool,
        dropout: float = 0.0,
        conv_kernel: int = 0,
        n_experts: int = 0,
        n_active_experts: int = 2,
    ) -> None:
        """n_layers: blocks of the whole stack, by which residual outputs are scaled down.

        dropout: probability on each branch's output in training.
        conv_kernel: width of the depthwise convolution branch, 0 for none; a block with one cannot `step`.
        n_experts: 0 for one SwiGLU, otherwise a mixture of that many.
        """
        super().__init__()
        n_branches = 3 if conv_kernel else 2
        scale = 1.0 / math.sqrt(n_branches * n_layers)
        self.dropout = dropout
        self.attention_norm = RMSNorm(d_model)
        self.attention = Attention(
            d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, causal=causal, out_scale=scale
        )
        self.conv_norm = RMSNorm(d_model) if conv_kernel else None
        self.conv = PackedConv(d_model, kernel=conv_kernel, out_scale=scale) if conv_kernel else None
        self.ff_norm = RMSNorm(d_model)
        self.ff: FeedForward | MoE = (
            MoE(d_model, d_ff, n_experts=n_experts, n_active=n_active_experts, out_scale=scale)
            if n_experts
            else FeedForward(d_model, d_ff, out_scale=scale)
        )

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0.0 else x

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        same: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Packed rows x (T, d_model) -> (T, d_model). same: `conv.same_document`, for a convolution."""
        x = x + self._drop(self.attention(self.attention_norm(x), cos, sin, cu_seqlens, max_seqlen))
        if self.conv is not None and self.conv_norm is not None:
            if same is None:
                raise ValueError(
                    "same: this block has a convolution and needs conv.same_document of the batch."
                )
            x = x + self._drop(self.conv(self.conv_norm(x), same))
        return x + self._drop(self.ff(self.ff_norm(x)))

    def step(
        self, x: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, cache: CacheLayer
    ) -> torch.Tensor:
        """New positions x (B, Tq, d_model) after those in the cache -> (B, Tq, d_model).

        Raises ValueError for a block with a convolution: it sees the future and cannot stream.
        """
        if self.conv is not None:
            raise ValueError(
                "step: a block with a convolution over later rows cannot be stepped; use forward."
            )
        x = x + self._drop(self.attention.step(self.attention_norm(x), cos, sin, cache))
        return x + self._drop(self.ff(self.ff_norm(x)))
