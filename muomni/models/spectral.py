"""How far two waves are apart in their short-time spectra, at several resolutions."""

from __future__ import annotations

import torch
from muomni_kernels import mel_filterbank
from torch import nn

from muomni.config import MelConfig
from muomni.models.discriminators import magnitude

RESOLUTIONS: tuple[tuple[int, int], ...] = ((256, 32), (512, 64), (1_024, 100), (2_048, 128))
"""Samples of a window, whose hop is a quarter, and mel bands."""
FLOOR = 1e-3
"""Added to magnitudes before their logarithm: what is quieter is not heard."""


class SpectralDistance(nn.Module):
    """Absolute differences of log-magnitudes, bin by bin and in mel bands."""

    def __init__(self, mel: MelConfig) -> None:
        """mel: gives the sample rate, the scale and its range."""
        super().__init__()
        for n_fft, n_mels in RESOLUTIONS:
            filters = mel_filterbank(
                n_mels=n_mels, n_fft=n_fft, sample_rate=mel.sample_rate, f_min=mel.f_min, f_max=mel.f_max,
                scale=mel.scale,
            )  # fmt: skip
            # Of each band the weighted mean; bands that hold no bin stay zero.
            filters = filters / filters.sum(1, keepdim=True).clamp(min=1e-8)
            self.register_buffer(f"filters_{n_fft}", filters, persistent=False)
            self.register_buffer(f"window_{n_fft}", torch.hann_window(n_fft, device="cpu"), persistent=False)

    def forward(self, wave: torch.Tensor, recorded: torch.Tensor) -> dict[str, torch.Tensor]:
        """Waves (B, n_samples) float32 -> sums over all values: `mel` and `magnitude`, natural logarithms."""
        by_band, by_bin = wave.new_zeros(()), wave.new_zeros(())
        for n_fft, _ in RESOLUTIONS:
            sizes = [self._magnitudes(w, n_fft) for w in (wave, recorded)]
            filters = self.get_buffer(f"filters_{n_fft}")
            bands = [(filters @ size + FLOOR).log() for size in sizes]
            by_band = by_band + (bands[0] - bands[1]).abs().sum()
            logs = [(size + FLOOR).log() for size in sizes]
            by_bin = by_bin + (logs[0] - logs[1]).abs().sum()
        return {"mel": by_band, "magnitude": by_bin}

    @staticmethod
    def counts(n_waves: int, n_samples: int) -> dict[str, int]:
        """Values that `forward` sums over."""
        windows = [n_waves * ((n_samples - n_fft) // (n_fft // 4) + 1) for n_fft, _ in RESOLUTIONS]
        return {
            "mel": sum(n * n_mels for n, (_, n_mels) in zip(windows, RESOLUTIONS, strict=True)),
            "magnitude": sum(
                n * (n_fft // 2 + 1) for n, (n_fft, _) in zip(windows, RESOLUTIONS, strict=True)
            ),
        }

    def _magnitudes(self, wave: torch.Tensor, n_fft: int) -> torch.Tensor:
        """(B, n_bins, n_windows); a sine of amplitude a has about a."""
        spectrum = torch.stft(
            wave, n_fft, n_fft // 4, window=self.get_buffer(f"window_{n_fft}"), center=False, return_complex=True
        )  # fmt: skip
        return magnitude(spectrum) * (4.0 / n_fft)
