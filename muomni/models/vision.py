"""The vision encoder (ViT with CLS), and the text tower and heads of its contrastive training."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import VisionConfig
from muomni.nn.block import Stack
from muomni.nn.init import linear, table
from muomni.nn.rope import packed_positions, rotary_tables, segment_ids

ROPE_THETA = 10_000.0
CELL = 4
"""Pixels a side of a cell."""
INITIAL_SCALE = 10.0
"""Initial inverse temperature of the contrast."""
MAX_SCALE = 100.0


class CellPatch(nn.Module):
    """A patch's pixels -> its vector, by way of its 4 x 4 pixel cells, which share a layer.

    Source: the early convolutions of Xiao et al., "Early Convolutions Help Transformers See Better", 2021, here inside
    the patch, so that patches that are not seen cost nothing.
    """

    def __init__(self, patch_size: int, d_model: int, *, channels: int) -> None:
        """channels: of each cell."""
        super().__init__()
        self.side = patch_size // CELL
        self.cell = linear(3 * CELL**2, channels, bias=True)
        self.out = linear(self.side**2 * channels, d_model, bias=True)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(..., 3 * patch_size**2), as rows of 3 x patch_size x patch_size pixels -> (..., d_model)."""
        rows = patches.reshape(-1, 3, self.side, CELL, self.side, CELL).permute(0, 2, 4, 1, 3, 5)
        cells = F.silu(self.cell(rows.reshape(len(rows), self.side**2, -1)))
        return self.out(cells.flatten(1)).view(*patches.shape[:-1], -1)


class VisionEncoder(nn.Module):
    """Patches -> transformer -> CLS, and optionally a pooled patch grid."""

    def __init__(self, cfg: VisionConfig) -> None:
        """Learned positions; bidirectional blocks."""
        super().__init__()
        self.cfg = cfg
        self.side = cfg.image_size // cfg.patch_size
        self.patch = (
            CellPatch(cfg.patch_size, cfg.d_model, channels=cfg.cell_channels)
            if cfg.cell_channels
            else linear(3 * cfg.patch_size**2, cfg.d_model, bias=True)
        )
        self.cls = table(1, cfg.d_model, std=0.5)
        self.position = table(cfg.n_patches, cfg.d_model, std=0.5)
        self.stack = Stack(
            cfg.d_model, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_heads,
            head_dim=cfg.d_model // cfg.n_heads, d_ff=cfg.d_ff, causal=False,
        )  # fmt: skip

    def forward(self, images: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """images: (n, 3, S, S) float, about [-1, 1]. Returns (n, n_image_tokens, d_model): CLS, then grid.

        seen: (n, m) int64, the patches that are looked at, in training: the others cost nothing, and the CLS vector
        alone is returned, (n, 1, d_model). Source: Li et al., "Scaling Language-Image Pre-training via Masking", 2023.
        Raises ValueError for another shape.
        """
        size, n = self.cfg.image_size, len(images)
        if images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images: expected (n, 3, {size}, {size}), got {tuple(images.shape)}; resize them first."
            )
        position = self.position if seen is None else F.embedding(seen, self.position)
        x = self.patch(self._patches(images, seen)) + position
        x = torch.cat([self.cls.expand(n, 1, -1), x], dim=1)
        seq_len = x.shape[1]
        cu_seqlens = torch.arange(n + 1, device=x.device, dtype=torch.int32) * seq_len
        states = self.stack(x.reshape(n * seq_len, -1), None, None, cu_seqlens, seq_len).view(n, seq_len, -1)
        return self._pool(states) if seen is None else states[:, :1]

    def _patches(self, images: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        side, patch = self.side, self.cfg.patch_size
        grid = images.reshape(-1, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        if seen is None:
            return grid.reshape(len(images), side * side, 3 * patch * patch)
        rows = torch.arange(len(images), device=images.device)[:, None]
        return grid[rows, seen // side, seen % side].flatten(2)

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        k = math.isqrt(self.cfg.n_image_tokens - 1)
        if k == 0:
            return x[:, :1]
        cell = self.side // k
        grid = x[:, 1:].reshape(len(x), k, cell, k, cell, -1).mean((2, 4)).reshape(len(x), k * k, -1)
        return torch.cat([x[:, :1], grid], dim=1)


class TextTower(nn.Module):
    """Packed captions -> one vector each: bidirectional blocks and the mean over the caption's tokens."""

    def __init__(
        self, vocab_size: int, *, d_model: int, n_layers: int, n_heads: int, d_ff: int, embed_dim: int
    ) -> None:
        """embed_dim: width of the contrastive space."""
        super().__init__()
        self.head_dim = d_model // n_heads
        self.embedding = table(vocab_size, d_model, std=1.0)
        self.stack = Stack(
            d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads, head_dim=self.head_dim, d_ff=d_ff,
            causal=False,
        )  # fmt: skip
        self.out = linear(d_model, embed_dim)

    def forward(self, ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int) -> torch.Tensor:
        """ids: (T,) int64 packed; cu_seqlens: (n_docs + 1,) int32. Returns (n_docs, embed_dim)."""
        x = F.embedding(ids, self.embedding)
        positions = packed_positions(cu_seqlens, len(ids))
        cos, sin = rotary_tables(positions, head_dim=self.head_dim, theta=ROPE_THETA)
        states = self.stack(x, cos, sin, cu_seqlens, max_seqlen)
        n_docs = len(cu_seqlens) - 1
        # Rows after the last document fall into one more sum, which is dropped.
        sums = x.new_zeros(n_docs + 1, x.shape[1]).index_add(
            0, segment_ids(cu_seqlens, len(ids)), states.to(x.dtype)
        )
        lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).clamp(min=1).to(x.dtype)
        return self.out(sums[:n_docs] / lengths[:, None])


class ContrastModel(nn.Module):
    """A vision encoder and a text tower meeting in one space. Source: Radford et al., CLIP, 2021."""

    def __init__(self, cfg: VisionConfig, *, vocab_size: int) -> None:
        """vocab_size: of the tokenizer the captions are encoded with."""
        super().__init__()
        self.vision = VisionEncoder(cfg)
        self.text_tower = TextTower(
            vocab_size, d_model=cfg.d_model, n_layers=cfg.text_layers, n_heads=cfg.n_heads, d_ff=cfg.d_ff,
            embed_dim=cfg.embed_dim,
        )  # fmt: skip
        self.image_projection = linear(cfg.d_model, cfg.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))

    def embed_images(self, images: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """(n, 3, S, S) -> unit rows (n, embed_dim), from the CLS vector; seen: as `VisionEncoder.forward`."""
        return F.normalize(self.image_projection(self.vision(images, seen)[:, 0]), dim=-1)

    def embed_texts(self, ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int) -> torch.Tensor:
        """Packed captions -> unit rows (n_docs, embed_dim)."""
        return F.normalize(self.text_tower(ids, cu_seqlens, max_seqlen), dim=-1)

    def scale(self) -> torch.Tensor:
        """() inverse temperature, at most MAX_SCALE."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    def forward(
        self,
        images: torch.Tensor,
        ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        seen: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit image rows (n, embed_dim), unit text rows (n_docs, embed_dim), inverse temperature ()."""
        return self.embed_images(images, seen), self.embed_texts(ids, cu_seqlens, max_seqlen), self.scale()
