"""Resemblyzer's speaker encoder (GE2E; Wan et al., 2018): who speaks, as a vector; three LSTM layers over mel power.

Its weights lie in a file that only pickle opens. The file is pinned by its package's SHA-256, so its numbers are read
where they are known to lie, and nothing in it is run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from muomni.config import MelConfig
from muomni.data.audio import log_mel
from muomni.data.sources.fetch import fetch
from muomni.evaluate.judges.package import Judge, as_clip, pypi

JUDGE = Judge(
    about="Resemblyzer 0.1.4, silences kept (Apache-2.0)",
    packages=(
        pypi(
            "Resemblyzer", "0.1.4", "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f", 15_747_704,
            "Apache-2.0", "Resemblyzer, Copyright 2019 Resemble AI", "speaker encoder",
        ),
    ),
)  # fmt: skip
MEL = MelConfig(n_mels=40, floor=1e-30)
WIDTH, N_LAYERS = 256, 3
PARTIAL = 160
"""Frames of a partial utterance: 1.6 s."""
STEP = 77
"""Frames between partial utterances: 1.3 a second."""
COVERAGE = 0.75
"""Share of its last partial utterance that a clip must fill, or it is left out."""
LEVEL = 10 ** (-30 / 20)
"""Root mean square that quieter clips are raised to: -30 dB of full scale."""
# Byte offsets in pretrained.pt of float32 numbers: PyTorch keeps all LSTM tensors in one block, matrices first.
LINEAR_BIAS, LINEAR_WEIGHT, LSTM_BLOCK = 6_699, 7_731, 269_883


def partials(n_samples: int) -> list[int]:
    """First frames of a clip's partial utterances of 160 frames."""
    n_frames = -(-(n_samples + 1) // MEL.hop_length)
    starts = list(range(0, max(1, n_frames - PARTIAL + STEP + 1), STEP))
    filled = (n_samples - starts[-1] * MEL.hop_length) / (PARTIAL * MEL.hop_length)
    return starts[:-1] if filled < COVERAGE and len(starts) > 1 else starts


def mel_power(waveform: np.ndarray) -> torch.Tensor:
    """(n_samples,) -> mel power (1 + n_samples // 160, 40), frame t centred on sample 160 t, zeros beyond the ends."""
    half, hop = MEL.n_fft // 2, MEL.hop_length
    # Causal frame t + 1 ends at sample (t + 2) * hop, with these zeros before the clip half a window after t * hop.
    before = 2 * hop - half
    padded = np.pad(np.asarray(waveform, np.float32), (before, half))
    return log_mel(padded, MEL)[1 : 2 + len(waveform) // hop].exp()


class SpeakerEncoder:
    """Clips to vectors of length 1; the product of two vectors is the similarity of their speakers."""

    def __init__(self, cache: Path) -> None:
        """Load the network from cache, fetching it if needed. Raises SourceError."""
        raw = (fetch(JUDGE.packages[0], cache) / "resemblyzer" / "pretrained.pt").read_bytes()
        self._lstm = nn.LSTM(MEL.n_mels, WIDTH, N_LAYERS, batch_first=True)
        self._linear = nn.Linear(WIDTH, WIDTH)
        lstm = dict(self._lstm.named_parameters())
        matrices = [name for name in lstm if "weight" in name]
        with torch.no_grad():
            at = LSTM_BLOCK
            for name in [*matrices, *(name for name in lstm if "bias" in name)]:
                at = _read(lstm[name], raw, at)
            _read(self._linear.weight, raw, LINEAR_WEIGHT)
            _read(self._linear.bias, raw, LINEAR_BIAS)

    @torch.inference_mode()
    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """(n_samples,) float32 at 16 kHz -> (256,) float32 of length 1. Raises ValueError for no sample."""
        as_clip(waveform)
        level = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
        if 0.0 < level < LEVEL:
            waveform = waveform * (LEVEL / level)
        starts = partials(len(waveform))
        missing = (starts[-1] + PARTIAL) * MEL.hop_length - len(waveform)
        frames = mel_power(np.pad(waveform, (0, max(0, missing))))
        _, (hidden, _) = self._lstm(torch.stack([frames[s : s + PARTIAL] for s in starts]))
        vectors = nn.functional.normalize(self._linear(hidden[-1]).relu(), dim=1)
        return nn.functional.normalize(vectors.mean(0), dim=0).numpy()


def _read(parameter: torch.Tensor, raw: bytes, at: int) -> int:
    """Fill a parameter with the float32 numbers at an offset; gives the offset after them."""
    numbers = np.frombuffer(raw, "<f4", parameter.numel(), at)
    parameter.copy_(torch.from_numpy(numbers.copy()).view_as(parameter))
    return at + numbers.nbytes
