"""The Talker: Thinker states and text -> codes frame by frame, with a depth transformer over codebooks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import CodecConfig, TalkerConfig
from muomni.nn.block import Block
from muomni.nn.cache import KVCache
from muomni.nn.init import linear, table
from muomni.nn.norm import RMSNorm
from muomni.nn.rope import rotary_tables

ROPE_THETA = 10_000.0

SampleFn = Callable[[torch.Tensor], torch.Tensor]
"""Logits (B, codebook_size) -> chosen codes (B,) int64."""


@dataclass
class TalkerState:
    """Streaming state: the caches of the backbone and, reused every frame, of the depth transformer."""

    backbone: KVCache
    depth: KVCache


class DepthTransformer(nn.Module):
    """Codebooks 1.. of a frame from its backbone state and the codes before them.

    Position 0 holds the projected backbone state, position k the embedding of code k - 1; the output at
    position k gives the logits of codebook k.
    """

    def __init__(self, cfg: TalkerConfig, codec: CodecConfig) -> None:
        """Tables and heads of their own for every codebook, so positions need no rotary angles."""
        super().__init__()
        d = cfg.depth_d_model
        self.n_levels, self.size = codec.n_codebooks - 1, codec.codebook_size
        self.n_heads, self.head_dim = cfg.depth_heads, d // cfg.depth_heads
        self.enter = linear(cfg.d_model, d)
        self.embedding = table(self.n_levels * self.size, d, std=1.0)
        self.blocks = nn.ModuleList(
            Block(
                d, n_layers=cfg.depth_layers, n_heads=cfg.depth_heads, n_kv_heads=cfg.depth_heads,
                head_dim=self.head_dim, d_ff=cfg.depth_d_ff, causal=True, dropout=cfg.dropout,
            )
            for _ in range(cfg.depth_layers)
        )  # fmt: skip
        self.norm = RMSNorm(d)
        self.heads = nn.Parameter(torch.randn(self.n_levels, d, self.size) / math.sqrt(d))

    def _embed(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (N, k) of codebooks 0..k-1 -> (N, k, d)."""
        levels = torch.arange(codes.shape[1], device=codes.device) * self.size
        return F.embedding(codes + levels, self.embedding)

    def forward(self, states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """states (N, d_model), codes (N, K) teacher-forced -> logits (N, K - 1, codebook_size)."""
        n_rows, seq_len = codes.shape
        x = torch.cat([self.enter(states)[:, None], self._embed(codes[:, :-1])], dim=1).reshape(
            n_rows * seq_len, -1
        )
        cu_seqlens = torch.arange(n_rows + 1, device=codes.device, dtype=torch.int32) * seq_len
        for block in self.blocks:
            x = block(x, None, None, cu_seqlens, seq_len)
        hidden = self.norm(x).view(n_rows, seq_len, -1)[:, 1:]
        return torch.bmm(hidden.transpose(0, 1), self.heads).transpose(0, 1)

    def step(
        self, state: torch.Tensor, first: torch.Tensor, cache: KVCache, sample: SampleFn
    ) -> torch.Tensor:
        """One frame: state (B, d_model), code 0 (B,) -> codes (B, K)."""
        cache.reset()
        codes = [first]
        x = torch.cat([self.enter(state)[:, None], self._embed(first[:, None])], dim=1)
        for level in range(self.n_levels):
            n_new = x.shape[1]
            cache.reserve(n_new)
            for i, block in enumerate(self.blocks):
                assert isinstance(block, Block)
                x = block.step(x, None, None, cache.layer(i))
            cache.advance(n_new)
            codes.append(sample(self.norm(x[:, -1]) @ self.heads[level]))
            if level + 1 < self.n_levels:
                offset = (level + 1) * self.size
                x = F.embedding(codes[-1] + offset, self.embedding)[:, None]
        return torch.stack(codes, dim=1)


class Talker(nn.Module):
    """At frame t the input is the sum of frame t - 1's code embeddings (BOS at 0) and condition[t]."""

    def __init__(self, cfg: TalkerConfig, d_thinker: int, codec: CodecConfig) -> None:
        """d_thinker: width of the unified space."""
        super().__init__()
        self.cfg, self.n_codebooks, self.size = cfg, codec.n_codebooks, codec.codebook_size
        d = cfg.d_model
        self.from_state = linear(d_thinker, d)
        self.from_embed = linear(d_thinker, d)
        self.pad = table(1, d, std=1.0)
        self.bos = table(1, d, std=1.0)
        # The sum over the codebooks has about unit scale.
        self.embedding = table(self.n_codebooks * self.size, d, std=1.0 / math.sqrt(self.n_codebooks))
        self.blocks = nn.ModuleList(
            Block(
                d, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads,
                head_dim=cfg.head_dim, d_ff=cfg.d_ff, causal=True, dropout=cfg.dropout,
            )
            for _ in range(cfg.n_layers)
        )  # fmt: skip
        self.norm = RMSNorm(d)
        self.head = linear(d, self.size)
        self.stop = linear(d, 1, bias=True)
        self.depth = DepthTransformer(cfg, codec)

    def condition(
        self, states: torch.Tensor, embeds: torch.Tensor, n_text: torch.Tensor, n_frames: int
    ) -> torch.Tensor:
        """What each frame is told: text position t at frame t, the pad condition once the text is used up.

        states, embeds: (B, n, d_thinker) Thinker states and token embeddings of the text's positions;
        n_text: (B,) int64 text positions; n_frames: T, text behind it is cut. Returns (B, T, d_model).
        """
        told = (self.from_state(states) + self.from_embed(embeds))[:, :n_frames]
        told = F.pad(told, (0, 0, 0, n_frames - told.shape[1]))
        is_text = torch.arange(n_frames, device=told.device) < n_text[:, None]
        return torch.where(is_text[..., None], told, self.pad.to(told.dtype))

    def forward(
        self, codes: torch.Tensor, condition: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Teacher-forced training on padded clips.

        codes: (B, K, T) int64, any valid code behind a clip's end; condition: (B, T, d_model);
        Outputs behind a clip's end are meaningless and to be left out of the loss; attention is causal, so no
        frame of a clip sees them.
        Returns logits (B, T, K, codebook_size) of each frame's own codes, and stop (B, T): logits of
        "this frame is the last".
        """
        n_batch, n_levels, n_frames = codes.shape
        if n_levels != self.n_codebooks:
            raise ValueError(
                f"codes: expected (B, {self.n_codebooks}, T) by CodecConfig, got {tuple(codes.shape)}."
            )
        own = codes.transpose(1, 2)
        before = torch.cat([self.bos.expand(n_batch, 1, -1), self._embed(own[:, :-1])], dim=1)
        x = (before + condition).reshape(n_batch * n_frames, -1)
        positions = torch.arange(n_frames, device=x.device).repeat(n_batch)
        cos, sin = self._tables(positions)
        cu_seqlens = torch.arange(n_batch + 1, device=x.device, dtype=torch.int32) * n_frames
        for block in self.blocks:
            x = block(x, cos, sin, cu_seqlens, n_frames)
        hidden = self.norm(x)
        rest = self.depth(hidden, own.reshape(n_batch * n_frames, -1))
        logits = torch.cat([self.head(hidden)[:, None], rest], dim=1)
        return {
            "logits": logits.view(n_batch, n_frames, n_levels, -1),
            "stop": self.stop(hidden).view(n_batch, n_frames),
        }

    def new_state(self, batch: int, max_frames: int) -> TalkerState:
        """Empty caches for at most max_frames frames."""
        cfg, weight, depth = self.cfg, self.embedding, self.depth
        device, dtype = weight.device, weight.dtype
        return TalkerState(
            KVCache(
                cfg.n_layers, batch, max_frames, cfg.n_kv_heads, cfg.head_dim, device=device, dtype=dtype
            ),
            KVCache(
                cfg.depth_layers,
                batch,
                self.n_codebooks,
                depth.n_heads,
                depth.head_dim,
                device=device,
                dtype=dtype,
            ),
        )

    def step(
        self, prev_codes: torch.Tensor | None, condition: torch.Tensor, state: TalkerState, sample: SampleFn
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One frame.

        prev_codes: (B, K) of the frame before, None at the first; condition: (B, d_model) of this frame;
        sample: chooses a code from logits (B, codebook_size). Returns codes (B, K) int64 and the probability
        (B,) that this frame is the last. Raises ValueError when the state is full.
        """
        before = self.bos if prev_codes is None else self._embed(prev_codes)
        x = (before + condition)[:, None]
        cache = state.backbone
        cache.reserve(1)
        cos, sin = self._tables(cache.lengths)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = block.step(x, cos, sin, cache.layer(i))
        cache.advance(1)
        hidden = self.norm(x[:, 0])
        codes = self.depth.step(hidden, sample(self.head(hidden)), state.depth, sample)
        return codes, self.stop(hidden)[:, 0].sigmoid()

    def _embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Sum of the code embeddings: (..., K) -> (..., d_model)."""
        levels = torch.arange(self.n_codebooks, device=codes.device) * self.size
        flat = (codes + levels).reshape(-1, self.n_codebooks)
        return F.embedding_bag(flat, self.embedding, mode="sum").view(*codes.shape[:-1], -1)

    def _tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rotary_tables(positions, head_dim=self.cfg.head_dim, theta=ROPE_THETA)
