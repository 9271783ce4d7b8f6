"""The audio encoder: stacked log-mel frames at 12.5 Hz -> vectors, and the CTC head that trains it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import AudioConfig
from muomni.nn.block import Stack
from muomni.nn.init import linear
from muomni.nn.rope import packed_positions, rotary_tables

N_CTC_SYMBOLS = 29
"""Blank, space, apostrophe and a-z: the length of data.audio.CTC_SYMBOLS (a test compares them)."""
ROPE_THETA = 10_000.0


class ConvDownsample(nn.Module):
    """Three strided convolutions over log-mel: each row sees its own pair of rows and the one before."""

    def __init__(self, n_mels: int, d_model: int, *, factor: int) -> None:
        """Raises ValueError unless factor is a power of two."""
        super().__init__()
        n_steps = factor.bit_length() - 1
        if 1 << n_steps != factor:
            raise ValueError(f"factor: expected a power of two for downsample 'conv', got {factor}.")
        self.n_mels = n_mels
        widths = [n_mels, *([d_model] * n_steps)]
        self.steps = nn.ModuleList(linear(3 * a, b, bias=True) for a, b in itertools.pairwise(widths))

    def forward(self, frames: torch.Tensor, same_as_last: torch.Tensor) -> torch.Tensor:
        """frames: (N, factor * n_mels); same_as_last: float (N, 1), 0 for the first frame of a document.

        Returns (N, d_model). No row reads across the start of its document.
        """
        n_frames = len(frames)
        x = frames.reshape(-1, self.n_mels)
        for i, step in enumerate(self.steps):
            pairs = x.reshape(len(x) // 2, -1)
            before = F.pad(x[1::2], (0, 0, 1, 0))[: len(pairs)].reshape(n_frames, -1, x.shape[1])
            # Only the first pair of a frame looks into the frame before.
            first = before[:, :1] * same_as_last[:, :, None]
            before = torch.cat([first, before[:, 1:]], dim=1).reshape(len(pairs), -1)
            x = step(torch.cat([before, pairs], dim=1))
            if i + 1 < len(self.steps):
                x = F.gelu(x)
        return x


class AudioEncoder(nn.Module):
    """Bidirectional transformer with depthwise convolutions over the frames of each clip."""

    def __init__(self, cfg: AudioConfig, n_mels: int) -> None:
        """n_mels: bands of one log-mel frame; cfg.factor of them make an input row."""
        super().__init__()
        self.cfg = cfg
        self.enter = (
            linear(cfg.factor * n_mels, cfg.d_model, bias=True) if cfg.downsample == "stack" else None
        )
        self.conv = (
            ConvDownsample(n_mels, cfg.d_model, factor=cfg.factor) if cfg.downsample == "conv" else None
        )
        self.head_dim = cfg.d_model // cfg.n_heads
        self.stack = Stack(
            cfg.d_model, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_heads,
            head_dim=self.head_dim, d_ff=cfg.d_ff, causal=False, dropout=cfg.dropout,
            conv_kernel=cfg.conv_kernel,
        )  # fmt: skip

    def forward(self, frames: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int) -> torch.Tensor:
        """Packed clips, each on its own.

        frames: (N, factor * n_mels) float, normalised log-mel at 12.5 Hz; cu_seqlens: (n_clips + 1,) int32;
        max_seqlen: frames of the longest clip. Returns (N, d_model).
        """
        positions = packed_positions(cu_seqlens, len(frames))
        if self.enter is not None:
            x = self.enter(frames)
        else:
            assert self.conv is not None
            x = self.conv(frames, (positions > 0).to(frames.dtype)[:, None])
        cos, sin = rotary_tables(positions, head_dim=self.head_dim, theta=ROPE_THETA)
        return self.stack(x, cos, sin, cu_seqlens, max_seqlen)


class CTCHead(nn.Module):
    """Logits at `expand` positions a frame, so that a character target fits (12.5 Hz x 4 = 50 Hz)."""

    def __init__(self, d_audio: int, expand: int, n_symbols: int = N_CTC_SYMBOLS) -> None:
        """n_symbols: the blank (0) included."""
        super().__init__()
        self.expand, self.n_symbols = expand, n_symbols
        self.out = linear(d_audio, expand * n_symbols, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, d_audio) -> (N * expand, n_symbols) logits, in order of time."""
        return self.out(x).view(-1, self.n_symbols)


@torch.no_grad()
def log_probs(
    encoder: AudioEncoder, head: CTCHead, clips: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """What CTC makes of clips that are heard together, none looking at another.

    clips: (n, factor * n_mels) normalised log-mel of each. Returns (n * head.expand, n_symbols) float32 of each, on the
    CPU.
    """
    device, lengths = next(encoder.parameters()).device, torch.tensor([len(clip) for clip in clips])
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    logits = head(encoder(torch.cat(list(clips)).to(device), cu_seqlens, int(lengths.max())))
    return logits.float().log_softmax(-1).cpu().split((lengths * head.expand).tolist())
