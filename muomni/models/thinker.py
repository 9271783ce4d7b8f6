"""The Thinker: a decoder-only transformer over the unified space, which does not know modalities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from muomni_kernels import linear_cross_entropy
from muomni_kernels.packed import PackedMatrix, Weights
from torch.nn import functional as F

from muomni.config import ThinkerConfig
from muomni.nn.block import Stack
from muomni.nn.cache import KVCache
from muomni.nn.init import table
from muomni.nn.moe import MoE
from muomni.nn.packing import Packs
from muomni.nn.rope import Rotary
from muomni.tokens import IGNORE_INDEX

LOGIT_STD = 0.25
"""Scale of the initial logits. At 1 a tied model starts by repeating its input: 3 nats above uniform."""


class Thinker(Packs[PackedMatrix]):
    """Embedding, pre-norm blocks with TM-RoPE, final norm, output tied to the embedding.

    A position's input holds traces of the few before it, and in the first block a value stands beside the key of the
    position before: both are settings (docs/LOG.md has what they give).
    """

    def __init__(self, cfg: ThinkerConfig) -> None:
        """Initial weights give embeddings of unit scale and logits of scale LOGIT_STD."""
        super().__init__()
        self.cfg = cfg
        std = LOGIT_STD / math.sqrt(cfg.d_model)
        self.embedding = table(cfg.vocab_size, cfg.d_model, std=std)
        self.embed_scale = 1.0 / std
        self._rotary = Rotary(head_dim=cfg.head_dim, theta=cfg.rope_theta, sections=cfg.rope_sections)
        self.stack = Stack(
            cfg.d_model, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads,
            head_dim=cfg.head_dim, d_ff=cfg.d_ff, causal=True, dropout=cfg.dropout, n_experts=cfg.n_experts,
            n_active_experts=cfg.n_active_experts, rotary=self._rotary, mix_kernel=cfg.mix_kernel,
            late_keys=cfg.late_keys,
        )  # fmt: skip

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) int64 -> (..., d_model): the unified space, of unit scale at the start."""
        return F.embedding(ids, self.embedding) * self.embed_scale

    def forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        """Packed documents, each on its own.

        embeds: (T, d_model); positions: (T, 3) time, height, width; cu_seqlens: (n_docs + 1,) int32;
        max_seqlen: longest document. Returns the hidden states after the final norm, (T, d_model).
        """
        return self.stack(embeds, *self._rotary.tables(positions), cu_seqlens, max_seqlen)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., d_model) -> (..., vocab_size)."""
        if self.packed is not None and not torch.is_grad_enabled():
            return self.packed(hidden)
        return F.linear(hidden, self.embedding)

    def cross_entropy(
        self, hidden: torch.Tensor, labels: torch.Tensor, *, reduction: Literal["sum", "none"] = "sum"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of `logits` without holding them.

        hidden: (T, d_model); labels: (T,) int64, IGNORE_INDEX for no target.
        Returns the summed nats () and the number of targets (); with "none" each position's nats (T,), without
        gradient, and whether its label is the likeliest token (T,) bool.
        """
        return linear_cross_entropy(
            hidden, self.embedding, labels, ignore_index=IGNORE_INDEX, reduction=reduction
        )

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for `step`, on the weights' device and in their dtype."""
        cfg, weight = self.cfg, self.embedding
        return KVCache(
            cfg.n_layers,
            batch,
            max_len,
            cfg.n_kv_heads,
            cfg.head_dim,
            d_inputs=cfg.d_model if cfg.mix_kernel > 1 else 0,
            device=weight.device,
            dtype=weight.dtype,
        )

    def step(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        rows: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Prefill (Tq > 1) or decode (Tq = 1): new positions behind those in the cache, which grows by Tq.

        embeds: (B, Tq, d_model); positions: (B, Tq, 3); rows: the sequences of the cache that are meant, each once,
        None for all. Returns hidden states (B, Tq, d_model). Raises ValueError when the cache is full.
        """
        return self.stack.step(embeds, positions, cache, rows)

    def pack(self, *, n_positions: int, weights: Weights = "float32") -> str | None:
        """As `Stack.pack`, with the output layer."""
        reason = self.stack.pack(weights=weights, n_positions=n_positions)
        self.packed = None if reason else PackedMatrix(self.embedding, weights=weights)
        return reason

    def balance_loss(self) -> torch.Tensor:
        """() mean over layers of the experts' balance loss of the last forward, unweighted; 0 when dense."""
        losses = [m.balance_loss() for m in self.modules() if isinstance(m, MoE)]
        return torch.stack(losses).mean() if losses else self.embedding.new_zeros(())
