"""Mel -> waveform without training: streaming Griffin-Lim, one code frame a block, with lookahead.

Sources: Griffin and Lim, 1984; Zhu, Beauregard and Wyse, 2007 (real-time spectrogram inversion with
look-ahead: samples already given out stay fixed while the phases after them are fitted).
"""

from __future__ import annotations

import torch
from muomni_kernels import mel_filterbank
from torch.nn import functional as F

from muomni.config import GriffinLimConfig, MelConfig
from muomni.models.streaming import StreamingVocoder

INVERSION_STEPS = 15
"""Multiplicative updates of the mel inversion."""
MOMENTUM = 0.9
"""Extrapolation of the spectrum between iterations (fast Griffin-Lim; Perraudin et al., 2013)."""
TINY = 1e-12


class GriffinLimState:
    """Streaming state of one utterance."""

    def __init__(self, magnitudes: torch.Tensor, wave: torch.Tensor) -> None:
        """magnitudes: (n_context, bins) of the frames before; wave: the samples they cover."""
        self.magnitudes = magnitudes
        """(n, bins): finished frames that reach into the future, and those not given out yet."""
        self.wave = wave
        """Samples those frames cover: finished ones, then the current estimate of the others."""
        self.n_pending = 0
        """Frames received whose samples are not given out yet."""


class GriffinLim(StreamingVocoder):
    """Natural-log mel power at 100 Hz -> 16 kHz waveform, untrained; offline is the stream over the clip."""

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, mel: MelConfig, cfg: GriffinLimConfig, *, block: int = 8) -> None:
        """block: log-mel frames a step; cfg.lookahead of them are held back to fit the ones before.

        Raises ValueError for a spectrogram that is not causal and natural-log, or a lookahead over the block.
        """
        super().__init__()
        if mel.padding != "causal" or mel.log != "ln":
            raise ValueError(f"mel: expected padding causal and log ln, got {mel.padding} and {mel.log}.")
        if not 0 <= cfg.lookahead <= block:
            raise ValueError(f"lookahead: expected 0 to {block} frames, got {cfg.lookahead}.")
        self.mel, self.cfg, self.block = mel, cfg, block
        # Finished frames that still reach into samples to come; earlier ones have no say.
        self.n_context = -(-mel.n_fft // mel.hop_length) - 1
        left = (mel.n_fft - mel.win_length) // 2
        hann = torch.hann_window(mel.win_length, device="cpu")
        self.register_buffer(
            "window", F.pad(hann, (left, mel.n_fft - mel.win_length - left)), persistent=False
        )
        filters = mel_filterbank(
            n_mels=mel.n_mels, n_fft=mel.n_fft, sample_rate=mel.sample_rate, f_min=mel.f_min, f_max=mel.f_max,
            scale=mel.scale,
        )  # fmt: skip
        self.register_buffer("filters", filters.clone(), persistent=False)

    def new_state(self) -> GriffinLimState:
        """Silence before the first frame."""
        window, mel = self.window, self.mel
        n_before = mel.n_fft + (self.n_context - 1) * mel.hop_length
        return GriffinLimState(
            window.new_zeros(self.n_context, mel.n_fft // 2 + 1), window.new_zeros(n_before)
        )

    @torch.no_grad()
    def step(self, log_mel: torch.Tensor, state: GriffinLimState, *, flush: bool = False) -> torch.Tensor:
        """New log-mel frames -> the samples that are now finished.

        log_mel: (n, n_mels) float, natural logarithm of mel power (not normalised), n at most one block;
        state is moved on. flush: also give out what was held back; the utterance is then over.
        Returns float32 (n_samples,), hop_length for every finished frame: all but the last cfg.lookahead.
        """
        if log_mel.ndim != 2 or log_mel.shape[1] != self.mel.n_mels:
            raise ValueError(f"log_mel: expected (n, {self.mel.n_mels}), got {tuple(log_mel.shape)}.")
        if len(log_mel):
            self._extend(state, self.magnitudes(log_mel.float()))
            self._fit(state)
        n_finished = state.n_pending if flush else max(0, state.n_pending - self.cfg.lookahead)
        return self._give(state, n_finished)

    def flush(self, state: GriffinLimState) -> torch.Tensor:
        """The samples held back, float32 (n_samples,)."""
        return self._give(state, state.n_pending)

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """A whole clip (T, n_mels) -> float32 (T * hop_length,): the stream over it, block by block."""
        state = self.new_state()
        parts = [self.step(part, state) for part in log_mel.split(self.block)] if len(log_mel) else []
        return torch.cat([*parts, self.flush(state)])

    def magnitudes(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Natural-log mel power (n, n_mels) -> magnitudes (n, n_fft / 2 + 1) >= 0 whose mel power is nearest.

        Multiplicative updates of the Itakura-Saito divergence, which like the logarithm counts ratios and not
        differences (Fevotte, Bertin and Durrieu, 2009). Bands without any bin are left out.
        """
        total = self.filters.sum(1)
        filters = self.filters[total > 0]
        target = log_mel[:, total > 0].exp()
        power = (target / filters.sum(1)) @ filters / filters.sum(0).clamp(min=TINY)
        for _ in range(INVERSION_STEPS):
            now = (power @ filters.T).clamp(min=TINY)
            power = (
                power * ((target / now.square()) @ filters / ((1.0 / now) @ filters).clamp(min=TINY)).sqrt()
            )
        return power.sqrt()

    def _extend(self, state: GriffinLimState, magnitudes: torch.Tensor) -> None:
        """Append frames with a first estimate: each takes the phases of what is known inside its window."""
        mel, window = self.mel, self.window
        weight = window.square().sum() / mel.hop_length
        delay = torch.polar(
            torch.ones(mel.n_fft // 2 + 1, device=window.device),
            torch.arange(mel.n_fft // 2 + 1, device=window.device) * torch.pi,
        )
        wave = F.pad(state.wave, (0, len(magnitudes) * mel.hop_length))
        for i, magnitude in enumerate(magnitudes):
            end = len(state.wave) + (i + 1) * mel.hop_length
            spectrum = torch.fft.rfft(wave[end - mel.n_fft : end] * window)
            size = spectrum.abs()
            # Where nothing is known a pulse in the middle of the window: zero phase would put it on its edge.
            phase = torch.where(size > 1e-8, spectrum / size.clamp(min=TINY), delay)
            frame = torch.fft.irfft(magnitude * phase, n=mel.n_fft)
            # Only the part the earlier frames do not reach is new; the fit then spreads it.
            wave[end - mel.hop_length : end] += (frame * window)[-mel.hop_length :] / weight
        state.wave = wave
        state.magnitudes = torch.cat([state.magnitudes, magnitudes])
        state.n_pending += len(magnitudes)

    def _fit(self, state: GriffinLimState) -> None:
        """Griffin-Lim over the frames at hand; finished samples are put back after every iteration."""
        mel, window, target = self.mel, self.window, state.magnitudes
        n_frames, n_pending = len(target), state.n_pending
        n_free = n_pending * mel.hop_length
        fixed = state.wave[: len(state.wave) - n_free]
        weight = self._overlap_weight(n_frames).clamp(min=1e-3)
        wave, before = state.wave, None
        for _ in range(self.cfg.n_iters):
            spectrum = torch.fft.rfft(wave.unfold(0, mel.n_fft, mel.hop_length) * window)
            ahead = spectrum if before is None else spectrum + MOMENTUM * (spectrum - before)
            before = spectrum
            frames = torch.fft.irfft(target * ahead / ahead.abs().clamp(min=TINY), n=mel.n_fft) * window
            wave = self._overlap_add(frames) / weight
            wave = torch.cat([fixed, wave[len(fixed) :]])
        state.wave = wave

    def _give(self, state: GriffinLimState, n_finished: int) -> torch.Tensor:
        hop = self.mel.hop_length
        start = len(state.wave) - state.n_pending * hop
        given = state.wave[start : start + n_finished * hop].clone()
        state.n_pending -= n_finished
        kept = self.n_context + state.n_pending
        state.magnitudes = state.magnitudes[-kept:]
        state.wave = state.wave[-(self.mel.n_fft - hop + kept * hop) :]
        return given

    def _overlap_add(self, frames: torch.Tensor) -> torch.Tensor:
        """(n, n_fft) -> (n_fft + (n - 1) * hop,)."""
        hop = self.mel.hop_length
        size = self.mel.n_fft + (len(frames) - 1) * hop
        return F.fold(frames.T[None], (1, size), kernel_size=(1, self.mel.n_fft), stride=(1, hop)).view(-1)

    def _overlap_weight(self, n_frames: int) -> torch.Tensor:
        return self._overlap_add(self.window.square().expand(n_frames, -1))
