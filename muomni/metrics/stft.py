"""Multi-resolution STFT distance of two waveforms (Yamamoto, Song and Kim, 2020)."""

from __future__ import annotations

import numpy as np

RESOLUTIONS: tuple[tuple[int, int, int], ...] = ((512, 50, 240), (1_024, 120, 600), (2_048, 240, 1_200))
"""(n_fft, hop_length, win_length) in samples."""
FLOOR = 1e-5
"""Smallest magnitude before the logarithm, and smallest norm that is divided by."""


def magnitudes(waveform: np.ndarray, *, n_fft: int, hop_length: int, win_length: int) -> np.ndarray:
    """(n_samples,) -> (n_frames, n_fft / 2 + 1): Hann windows, zeros behind the end."""
    missing = -(len(waveform) - win_length) % hop_length if len(waveform) > win_length else 0
    padded = np.pad(np.asarray(waveform, np.float64), (0, max(missing, win_length - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, win_length)[::hop_length]
    return np.abs(np.fft.rfft(frames * np.hanning(win_length + 1)[:-1], n_fft))


def multi_resolution_distance(reference: np.ndarray, other: np.ndarray) -> float:
    """Spectral convergence + mean absolute difference of log magnitudes (nepers), averaged over RESOLUTIONS.

    reference, other: (n_samples,) each, of one length; 0 for equal ones. Raises ValueError for two lengths or none.
    """
    if reference.ndim != 1 or reference.shape != other.shape or not len(reference):
        raise ValueError(
            f"reference, other: expected (n_samples,) both, with n_samples > 0, got {reference.shape}, {other.shape}."
        )
    total = 0.0
    for n_fft, hop, win in RESOLUTIONS:
        a, b = (magnitudes(x, n_fft=n_fft, hop_length=hop, win_length=win) for x in (reference, other))
        total += float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), FLOOR))
        total += float(np.abs(np.log(np.maximum(a, FLOOR)) - np.log(np.maximum(b, FLOOR))).mean())
    return total / len(RESOLUTIONS)
