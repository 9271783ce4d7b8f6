"""Judges to train against: of waves by period and by resolution of the spectrum, and of log-mel.

Sources: Kong et al., HiFi-GAN, 2020 (multi-period); Jang et al., UnivNet, 2021 (multi-resolution spectrograms).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

PERIODS = (2, 3, 5, 7, 11)
RESOLUTIONS = (256, 512, 1_024)
"""Samples of the windows; the hop is a quarter."""
SLOPE = 0.1
"""Of the leaky rectifier."""

Judged = list[tuple[torch.Tensor, list[torch.Tensor]]]
"""Of each judge: the score of every place, and the features of every layer."""


class _Judge(nn.Module):
    """Convolutions whose features and last scores are given."""

    def __init__(self, convolutions: list[nn.Conv2d], last: int) -> None:
        """last: channels of the last one."""
        super().__init__()
        self.convolutions = nn.ModuleList(nn.utils.parametrizations.weight_norm(c) for c in convolutions)
        self.score = nn.utils.parametrizations.weight_norm(nn.Conv2d(last, 1, (3, 1), padding=(1, 0)))

    def judge(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """x: (B, channels, rows, columns)."""
        features: list[torch.Tensor] = []
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), SLOPE)
            features.append(x)
        return self.score(x).flatten(1), features


class PeriodJudge(_Judge):
    """Looks at every period-th sample: folds the wave into columns."""

    def __init__(self, period: int, d: int) -> None:
        """d: channels of the first convolution."""
        self.period = period
        widths = [1, d, 2 * d, 4 * d, 4 * d]
        strides = [3, 3, 3, 1]
        super().__init__(
            [
                nn.Conv2d(a, b, (5, 1), (stride, 1), padding=(2, 0))
                for a, b, stride in zip(widths, widths[1:], strides, strict=False)
            ],
            widths[-1],
        )

    def forward(self, wave: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """wave: (B, n_samples); what does not fill a row is left out."""
        n_rows = wave.shape[1] // self.period
        return self.judge(wave[:, : n_rows * self.period].view(len(wave), 1, n_rows, self.period))


class ResolutionJudge(_Judge):
    """Looks at the magnitudes of a short-time spectrum."""

    window: torch.Tensor

    def __init__(self, n_fft: int, d: int) -> None:
        """n_fft: samples of a window."""
        self.n_fft = n_fft
        super().__init__(
            [nn.Conv2d(1 if i == 0 else d, d, (3, 9), (1, 2), padding=(1, 4)) for i in range(4)],
            d,
        )
        self.register_buffer("window", torch.hann_window(n_fft, device="cpu"), persistent=False)

    def forward(self, wave: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """wave: (B, n_samples)."""
        spectrum = torch.stft(
            wave.float(), self.n_fft, self.n_fft // 4, window=self.window, center=False, return_complex=True
        )
        return self.judge(magnitude(spectrum).transpose(1, 2)[:, None])


class LogMelJudge(_Judge):
    """Looks at log-mel, at full resolution or coarser."""

    def __init__(self, scale: int, d: int) -> None:
        """scale: frames and bands that are averaged first."""
        self.scale = scale
        super().__init__(
            [nn.Conv2d(1 if i == 0 else d, d, (3, 9), (1, 2), padding=(1, 4)) for i in range(4)],
            d,
        )

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """rows: (B, T, n_mels) normalised."""
        return self.judge(F.avg_pool2d(rows[:, None], self.scale))


class LogMelDiscriminators(nn.Module):
    """Judges of log-mel that the codec is trained against."""

    def __init__(self, d: int) -> None:
        """d: channels of a judge's convolutions."""
        super().__init__()
        self.judges = nn.ModuleList([LogMelJudge(1, d), LogMelJudge(2, d)])

    def forward(self, rows: torch.Tensor) -> Judged:
        """rows: (B, T, n_mels) -> what each judge says."""
        return [judge(rows) for judge in self.judges]


class Discriminators(nn.Module):
    """Judges of waves that the vocoder is trained against."""

    def __init__(self, d: int) -> None:
        """d: channels of a judge's first convolution."""
        super().__init__()
        self.judges = nn.ModuleList(
            [*(PeriodJudge(p, d) for p in PERIODS), *(ResolutionJudge(n, d) for n in RESOLUTIONS)]
        )

    def forward(self, wave: torch.Tensor) -> Judged:
        """wave: (B, n_samples) float32 -> what each judge says."""
        return [judge(wave) for judge in self.judges]


def magnitude(spectrum: torch.Tensor) -> torch.Tensor:
    """|spectrum| with a gradient everywhere."""
    return torch.view_as_real(spectrum).square().sum(-1).clamp(min=1e-10).sqrt()
