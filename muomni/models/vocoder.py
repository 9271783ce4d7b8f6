"""The vocoder: log-mel at 100 Hz -> 16 kHz waveform, by a causal network and an inverse Fourier transform; streaming.

Sources: Liu et al., 2022 (ConvNeXt); Siuzdak, Vocos, 2023 (magnitude and phase of a short-time spectrum).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import MelConfig, VocoderConfig
from muomni.models.streaming import StreamingVocoder
from muomni.nn.conv import CausalConv1d, CausalDepthwise
from muomni.nn.init import linear
from muomni.nn.moe import FeedForward
from muomni.nn.norm import RMSNorm

MAX_LOG_MAGNITUDE = 6.0
"""Of a spectrum's bin; a full-scale sine has log(n_fft / 4), 5.1 at 640."""


class VocoderState:
    """Streaming state of one utterance, replaced by `Vocoder.step`."""

    def __init__(self, past: list[torch.Tensor], tail: torch.Tensor) -> None:
        """past: the inputs that each convolution still needs; tail: (n_fft - hop,) samples not finished."""
        self.past, self.tail = past, tail
        self.n_frames = 0
        """Frames received."""


class ConvNeXt(nn.Module):
    """x + feed-forward(norm(depthwise causal convolution(x)))."""

    def __init__(self, d_model: int, d_ff: int, *, kernel: int, n_layers: int) -> None:
        """n_layers: blocks of the stack, by which the output is scaled down."""
        super().__init__()
        self.conv = CausalDepthwise(d_model, kernel=kernel)
        self.norm = RMSNorm(d_model)
        self.ff = FeedForward(d_model, d_ff, out_scale=1.0 / math.sqrt(n_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, T, d_model) -> the same shape."""
        return x + self.ff(self.norm(self.conv(x)))

    def step(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """New rows x (B, t, d_model) and the past -> rows and the next past."""
        y, past = self.conv.step(x, past)
        return x + self.ff(self.norm(y)), past


class Vocoder(StreamingVocoder):
    """Log-mel frames -> one short-time spectrum each -> windowed overlap-add.

    Frame t's spectrum is that of the n_fft samples before (t + 1) * hop, as its mel is. A sample is finished when all
    n_fft / hop frames around it are there: n_fft - hop samples after the frame that ends on it.
    """

    window: torch.Tensor

    def __init__(self, mel: MelConfig, cfg: VocoderConfig) -> None:
        """Untrained. Raises ValueError for a spectrogram that is not causal and natural-log, or a window that the hop
        does not divide into at least three parts, whose squares do not add up to a constant."""
        super().__init__()
        if mel.padding != "causal" or mel.log != "ln":
            raise ValueError(f"mel: expected padding causal and log ln, got {mel.padding} and {mel.log}.")
        if cfg.n_fft % mel.hop_length or cfg.n_fft < 3 * mel.hop_length:
            raise ValueError(
                f"n_fft: expected at least 3 times hop_length {mel.hop_length}, got {cfg.n_fft}."
            )
        self.mel, self.cfg = mel, cfg
        self.n_held = cfg.n_fft // mel.hop_length - 1
        """Frames after a sample's own that it still needs."""
        n_bins, d = cfg.n_fft // 2 + 1, cfg.d_model
        self.enter = CausalConv1d(mel.n_mels, d, kernel=cfg.kernel)
        self.blocks = nn.ModuleList(
            ConvNeXt(d, cfg.d_ff, kernel=cfg.kernel, n_layers=cfg.n_layers) for _ in range(cfg.n_layers)
        )
        self.norm = RMSNorm(d)
        self.head = linear(d, 2 * n_bins, bias=True)
        # The squares of Hann windows at this hop add up to 3 / 8 of their number.
        hann = torch.hann_window(cfg.n_fft, device="cpu")
        self.register_buffer("window", hann / (0.375 * (self.n_held + 1)), persistent=False)

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """A whole clip (T, n_mels), natural-log mel power -> float32 (T * hop_length,)."""
        state = self.new_state()
        return torch.cat([self.step(log_mel, state), self.flush(state)])

    def new_state(self) -> VocoderState:
        """Nothing before the first frame."""
        weight = self.head.weight
        past = [self.enter.new_state(1, device=weight.device, dtype=weight.dtype)]
        past += [block.conv.new_state(1) for block in self._blocks()]
        tail = torch.zeros(self.n_held * self.mel.hop_length, device=weight.device)
        return VocoderState(past, tail)

    @torch.no_grad()
    def step(self, log_mel: torch.Tensor, state: VocoderState, *, flush: bool = False) -> torch.Tensor:
        """New log-mel frames -> the samples that are now finished.

        log_mel: (n, n_mels) float, natural logarithm of mel power (not normalised); state is moved on.
        flush: also give out what was held back; the utterance is then over.
        Returns float32 (n_samples,), hop_length for every frame but the last n_held of the utterance.
        """
        if log_mel.ndim != 2 or log_mel.shape[1] != self.mel.n_mels:
            raise ValueError(f"log_mel: expected (n, {self.mel.n_mels}), got {tuple(log_mel.shape)}.")
        given = [self.advance(log_mel, state)] if len(log_mel) else []
        return torch.cat([*given, self.flush(state)] if flush else [*given, state.tail[:0]])

    def flush(self, state: VocoderState) -> torch.Tensor:
        """The samples held back, float32 (n_samples,): as if silence followed."""
        if not state.n_frames:
            return state.tail[:0]
        silence = torch.full(
            (self.n_held, self.mel.n_mels), math.log(self.mel.floor), device=state.tail.device
        )
        return self.advance(silence, state)

    def waveform(self, frames: torch.Tensor) -> torch.Tensor:
        """Normalised log-mel of crops, for training: (B, T, n_mels) -> float32 (B, (T - n_held) * hop_length).

        The samples of all frames but the last n_held, in which the first ones know nothing of what was before.
        """
        x = self.enter(frames)
        for block in self.blocks:
            x = block(x)
        hop = self.mel.hop_length
        return self._overlapped(self._windowed(x))[:, self.n_held * hop : -self.n_held * hop]

    def advance(self, log_mel: torch.Tensor, state: VocoderState) -> torch.Tensor:
        """The samples that some more frames finish, without those before the utterance."""
        x = ((log_mel - self.mel.mean) / self.mel.std).to(self.head.weight.dtype)[None]
        x, after = self.enter.step(x, state.past[0])
        past = [after]
        for block, before in zip(self._blocks(), state.past[1:], strict=True):
            x, after = block.step(x, before)
            past.append(after)
        wave = self._overlapped(self._windowed(x))[0]
        hop, n_new = self.mel.hop_length, len(log_mel)
        wave = torch.cat([wave[: len(state.tail)] + state.tail, wave[len(state.tail) :]])
        early = max(0, self.n_held - state.n_frames) * hop
        state.past, state.tail = past, wave[n_new * hop :]
        state.n_frames += n_new
        return wave[early : n_new * hop]

    def _windowed(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, T, d_model) -> windowed frames (B, T, n_fft) float32."""
        size, phase = self.head(self.norm(x)).float().chunk(2, dim=-1)
        spectrum = torch.polar(size.clamp(max=MAX_LOG_MAGNITUDE).exp(), phase)
        return self.inverse(spectrum)

    def inverse(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Spectra of Hann-windowed frames (..., n_bins) complex -> frames (..., n_fft) that overlap-add to the wave."""
        return torch.fft.irfft(spectrum, n=self.cfg.n_fft) * self.window

    def _overlapped(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, n_fft) -> (B, (T + n_held) * hop_length): frame t starts at t * hop_length."""
        hop = self.mel.hop_length
        parts = frames.unflatten(-1, (self.n_held + 1, hop))
        n_frames = frames.shape[1]
        wave = F.pad(parts[:, :, 0], (0, 0, 0, self.n_held))
        for k in range(1, self.n_held + 1):
            wave = wave + F.pad(parts[:, :, k], (0, 0, k, self.n_held - k))
        return wave.reshape(len(frames), (n_frames + self.n_held) * hop)

    def _blocks(self) -> list[ConvNeXt]:
        return [block for block in self.blocks if isinstance(block, ConvNeXt)]
