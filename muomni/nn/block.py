"""The pre-norm transformer block all parts are built from, and the stack of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from muomni_kernels.packed import LayerWeights, PackedStack, Weights, reason_against
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from muomni.nn.attention import Attention
from muomni.nn.cache import CacheLayer, KVCache
from muomni.nn.conv import CausalMix, PackedConv, earlier_rows, same_document
from muomni.nn.moe import FeedForward, MoE
from muomni.nn.norm import RMSNorm
from muomni.nn.packing import Packs
from muomni.nn.rope import Rotary


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
        late_keys: bool = False,
        n_experts: int = 0,
        n_active_experts: int = 2,
    ) -> None:
        """n_layers: blocks of the whole stack, by which residual outputs are scaled down. late_keys: as `Attention`.

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
            d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, causal=causal, out_scale=scale,
            late_keys=late_keys,
        )  # fmt: skip
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
        residual: torch.Tensor,
        branch: torch.Tensor | None,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        same: torch.Tensor | None = None,
        earlier: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed rows: the residual stream (T, d_model) and the branch before, not yet added -> the same two.

        same: `conv.same_document` of the batch, for a convolution; earlier: `conv.earlier_rows`, for late keys.
        Raises ValueError when one is missing.
        """
        x, residual = self.attention_norm.add(residual, branch)
        branch = self._drop(self.attention(x, cos, sin, cu_seqlens, max_seqlen, earlier))
        if self.conv is not None and self.conv_norm is not None:
            if same is None:
                raise ValueError(
                    "same: this block has a convolution and needs conv.same_document of the batch."
                )
            x, residual = self.conv_norm.add(residual, branch)
            branch = self._drop(self.conv(x, same))
        x, residual = self.ff_norm.add(residual, branch)
        return residual, self._drop(self.ff(x))

    def step(
        self,
        residual: torch.Tensor,
        branch: torch.Tensor | None,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        cache: CacheLayer,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New positions (B, Tq, d_model) after those in the cache; in and out as in `forward`.

        Raises ValueError for a block with a convolution: it sees the future and cannot stream.
        """
        if self.conv is not None:
            raise ValueError(
                "step: a block with a convolution over later rows cannot be stepped; use forward."
            )
        x, residual = self.attention_norm.add(residual, branch)
        branch = self._drop(self.attention.step(x, cos, sin, cache))
        x, residual = self.ff_norm.add(residual, branch)
        return residual, self._drop(self.ff(x))


class Stack(Packs[PackedStack]):
    """Blocks and the norm behind them. Each addition to the residual stream is joined with the norm that follows."""

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
        mix_kernel: int = 1,
        late_keys: bool = False,
        n_experts: int = 0,
        n_active_experts: int = 2,
        rotary: Rotary | None = None,
    ) -> None:
        """As `Block`; rotary: what positions do in `step`, None for nothing.

        mix_kernel: taps by which rows are mixed with those before them on the way in (`conv.CausalMix`), 1 for none.
        late_keys: in the first block.
        """
        super().__init__()
        self.conv_kernel, self.dropout, self.rotary = conv_kernel, dropout, rotary
        self.mix = CausalMix(d_model, kernel=mix_kernel) if mix_kernel > 1 else None
        self._n_earlier = max(mix_kernel - 1, int(late_keys))
        self.recompute = False
        """Keep each block's inputs alone for the backward, which computes the rest again: less memory, more time."""
        self.blocks = nn.ModuleList(
            Block(
                d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, d_ff=d_ff,
                causal=causal, dropout=dropout, conv_kernel=conv_kernel, late_keys=late_keys and number == 0,
                n_experts=n_experts, n_active_experts=n_active_experts,
            )
            for number in range(n_layers)
        )  # fmt: skip
        self.norm = RMSNorm(d_model)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
    ) -> torch.Tensor:
        """Packed rows x (T, d_model) -> normalised states (T, d_model); arguments as `Attention.forward`."""
        same = same_document(cu_seqlens, len(x), kernel=self.conv_kernel) if self.conv_kernel else None
        earlier = earlier_rows(cu_seqlens, len(x), n=self._n_earlier) if self._n_earlier else None
        if self.mix is not None and earlier is not None:
            x = self.mix(x, earlier)
        branch = None
        again = self.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            arguments = (x, branch, cos, sin, cu_seqlens, max_seqlen, same, earlier)
            # Only dropout draws: without it there is no generator to put back, which a CUDA graph could not.
            x, branch = (
                checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=self.dropout > 0)
                if again
                else block(*arguments)
            )
        return self.norm.add(x, branch)[0]

    def step(
        self,
        x: torch.Tensor,
        positions: torch.Tensor | None,
        cache: KVCache,
        rows: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """New positions x (B, Tq, d_model) behind those in the cache, which grows by Tq -> states (B, Tq, d_model).

        positions: (B, Tq) int64, or (B, Tq, 3) with sections; None without rotary positions. rows: the B sequences of
        the cache that are meant, each once; None for all. Raises ValueError when the cache is full, or a block has a
        convolution.
        """
        if self.packed is not None and not torch.is_grad_enabled():
            return self._packed_step(self.packed, x, positions, cache, rows)
        if rows is not None:
            # One by one: a product of several rows need not give each what it gives alone.
            places = [None] * len(rows) if positions is None else positions.split(1)
            each = zip(x.split(1), places, rows, strict=True)
            return torch.cat([self.step(own, at, cache.row(row)) for own, at, row in each])
        n_new = x.shape[1]
        cache.reserve(n_new)
        cos, sin = None, None
        if self.rotary is not None and positions is not None:
            cos, sin = self.rotary.tables(positions.flatten(0, 1))
        if self.mix is not None:
            x = self.mix.combine(x, cache.append_inputs(x, n_past=len(self.mix.weight) - 1))
        branch = None
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x, branch = block.step(x, branch, cos, sin, cache.layer(i))
        cache.advance(n_new)
        return self.norm.add(x, branch)[0]

    def _packed_step(
        self,
        packed: PackedStack,
        x: torch.Tensor,
        positions: torch.Tensor | None,
        cache: KVCache,
        rows: Sequence[int] | None,
    ) -> torch.Tensor:
        rows = range(cache.batch) if rows is None else rows
        cache.reserve(x.shape[1], rows)
        lengths = [int(cache.used[row]) for row in rows]
        y = packed.step(x, positions, cache.k, cache.v, cache.inputs, rows=list(rows), lengths=lengths)
        cache.advance(x.shape[1], rows)
        return y

    def pack(self, *, weights: Weights = "float32", n_positions: int = 0) -> str | None:
        """Copy the weights for `step` in C++, which is many times as fast on a CPU; None, or why it cannot be.

        weights: as `muomni_kernels.packed`. n_positions: rotary positions from 0 that may be met.
        """
        reason = reason_against(*self.parameters())
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        if any(block.conv is not None or isinstance(block.ff, MoE) for block in blocks):
            reason = "a block has a convolution or experts"
        if reason:
            return reason
        layers = []
        for block in blocks:
            attention, ff = block.attention, block.ff
            assert isinstance(ff, FeedForward)
            layers.append(
                LayerWeights(
                    attention_norm=block.attention_norm.weight, q_norm=attention.q_weight, k_norm=attention.k_weight,
                    ff_norm=block.ff_norm.weight, qkv=attention.qkv.weight, out=attention.out.weight,
                    gate_up=ff.gate_up.weight, down=ff.down.weight, late_keys=attention.late_keys,
                )
            )  # fmt: skip
        attention = blocks[0].attention
        self.packed = PackedStack(
            layers, self.norm.weight, n_heads=attention.n_heads, n_kv_heads=attention.n_kv_heads,
            head_dim=attention.head_dim, eps=self.norm.eps, weights=weights,
            mix=None if self.mix is None else self.mix.weight.detach(),
            tables=None if self.rotary is None else self.rotary.line(n_positions),
            axes=() if self.rotary is None else self.rotary.axes,
        )  # fmt: skip
        return None
