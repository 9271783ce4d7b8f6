"""The codec: stacked log-mel frames at 12.5 Hz -> residual codes -> frames, causal and streaming."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import CodecConfig, MelConfig
from muomni.models.quantize import ResidualVQ
from muomni.nn.conv import CausalConv1d
from muomni.nn.init import linear
from muomni.nn.norm import RMSNorm

KERNEL = 3
"""Taps of the convolutions at 12.5 Hz; block i is dilated by 2^(i mod 3)."""
REFINE_KERNEL = 5
"""Taps of the refinement at 100 Hz."""
REFINE_WIDTH = 64


class CodecOutput(NamedTuple):
    """What a training forward gives."""

    frames: torch.Tensor
    """(B, T, factor * n_mels) reconstruction."""
    codes: torch.Tensor
    """(B, K, T) int64."""
    commitment: torch.Tensor
    """() sum over valid frames."""


class CodecState:
    """Streaming state of the decoder: the past inputs of every convolution, replaced by decode_step."""

    def __init__(self, past: list[torch.Tensor]) -> None:
        """past: one (B, n_past, d) tensor a convolution, in order."""
        self.past = past


class ConvBlock(nn.Module):
    """x + out(silu(causal convolution(norm(x))))."""

    def __init__(self, d_model: int, *, dilation: int, n_layers: int) -> None:
        """n_layers: blocks of the stack, by which the output is scaled down."""
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.conv = CausalConv1d(d_model, d_model, kernel=KERNEL, dilation=dilation)
        self.out = linear(d_model, d_model, scale=1.0 / math.sqrt(n_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, T, d_model) -> the same shape."""
        return x + self.out(F.silu(self.conv(self.norm(x))))

    def step(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """New rows x (B, t, d_model) and the past -> rows and the next past."""
        y, past = self.conv.step(self.norm(x), past)
        return x + self.out(F.silu(y)), past


class Codec(nn.Module):
    """Encoder, ResidualVQ, mirrored decoder, and a small causal refinement at 100 Hz."""

    def __init__(self, cfg: CodecConfig, mel: MelConfig) -> None:
        """Frames are factor log-mel rows of mel.n_mels, normalised and side by side."""
        super().__init__()
        self.cfg, self.n_mels = cfg, mel.n_mels
        width, d = cfg.factor * mel.n_mels, cfg.d_model
        self.enter = linear(width, d, bias=True)
        self.encoder = nn.ModuleList(
            ConvBlock(d, dilation=2 ** (i % 3), n_layers=cfg.n_layers) for i in range(cfg.n_layers)
        )
        self.to_latent = linear(d, cfg.latent_dim, bias=True)
        self.quantizer = ResidualVQ(
            cfg.latent_dim,
            n_codebooks=cfg.n_codebooks,
            codebook_size=cfg.codebook_size,
            ema_decay=cfg.ema_decay,
        )
        self.from_latent = linear(cfg.latent_dim, d, bias=True)
        self.decoder = nn.ModuleList(
            ConvBlock(d, dilation=2 ** (i % 3), n_layers=cfg.n_layers) for i in range(cfg.n_layers)
        )
        self.leave = linear(d, width, bias=True)
        self.refine = CausalConv1d(mel.n_mels, REFINE_WIDTH, kernel=REFINE_KERNEL)
        self.refine_out = linear(REFINE_WIDTH, mel.n_mels, scale=0.1)
        # The path from frames to codes and back has no norm, which would hide loudness, and starts as a
        # projection: 10 % less error after a minute of training than random weights (docs/LOG.md).
        for layer in (self.enter, self.to_latent, self.from_latent, self.leave):
            nn.init.orthogonal_(layer.weight)

    def forward(
        self, frames: torch.Tensor, valid: torch.Tensor | None = None, *, n_active: int | None = None
    ) -> CodecOutput:
        """Reconstruct for training.

        frames: (B, T, factor * n_mels); valid: (B, T) bool, True before each clip's end, None for all;
        n_active: codebooks in use, None for all. Causal: padding at the end changes no valid frame.
        In train mode the quantiser keeps statistics for `commit`.
        """
        z = self._latent(frames)
        flat = None if valid is None else valid.reshape(-1)
        out = self.quantizer(z.reshape(-1, z.shape[-1]), n_active=n_active, valid=flat)
        codes = out.codes.view(*z.shape[:2], -1).transpose(1, 2)
        return CodecOutput(self._frames(out.quantised.view_as(z)), codes, out.commitment)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """frames (B, T, factor * n_mels) -> codes (B, K, T) int64."""
        z = self._latent(frames)
        codes = self.quantizer.encode(z.reshape(-1, z.shape[-1]))
        return codes.view(*z.shape[:2], -1).transpose(1, 2).contiguous()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (B, k, T) of the first k codebooks -> frames (B, T, factor * n_mels).

        Raises ValueError when there are more than n_codebooks.
        """
        return self._frames(self._dequantise(codes))

    def new_state(self, batch: int) -> CodecState:
        """The decoder's state before the first frame."""
        weight = self.from_latent.weight
        convs = [*(block.conv for block in self._decoder_blocks()), self.refine]
        return CodecState([conv.new_state(batch, device=weight.device, dtype=weight.dtype) for conv in convs])

    def decode_step(self, codes: torch.Tensor, state: CodecState) -> torch.Tensor:
        """codes (B, k, t) of new frames -> frames (B, t, factor * n_mels); moves the state on."""
        x = self.from_latent(self._dequantise(codes))
        past: list[torch.Tensor] = []
        for block, before in zip(self._decoder_blocks(), state.past, strict=False):
            x, after = block.step(x, before)
            past.append(after)
        rows = self._rows(self.leave(x))
        y, after = self.refine.step(rows, state.past[-1])
        state.past = [*past, after]
        return self._stack(rows + self.refine_out(F.silu(y)))

    def commit(self) -> None:
        """Apply the codebooks' statistics of this step."""
        self.quantizer.commit()

    def _decoder_blocks(self) -> list[ConvBlock]:
        return [block for block in self.decoder if isinstance(block, ConvBlock)]

    def _latent(self, frames: torch.Tensor) -> torch.Tensor:
        x = self.enter(frames)
        for block in self.encoder:
            x = block(x)
        return self.to_latent(x)

    def _dequantise(self, codes: torch.Tensor) -> torch.Tensor:
        n_batch, n_levels, n_frames = codes.shape
        z = self.quantizer.decode(codes.transpose(1, 2).reshape(-1, n_levels))
        return z.view(n_batch, n_frames, -1).to(self.from_latent.weight.dtype)

    def _frames(self, z: torch.Tensor) -> torch.Tensor:
        x = self.from_latent(z)
        for block in self.decoder:
            x = block(x)
        rows = self._rows(self.leave(x))
        return self._stack(rows + self.refine_out(F.silu(self.refine(rows))))

    def _rows(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.reshape(frames.shape[0], -1, self.n_mels)

    def _stack(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(rows.shape[0], -1, self.cfg.factor * self.n_mels)
