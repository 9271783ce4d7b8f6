"""A long recording in pieces that an encoder takes, cut where it is quiet."""

from __future__ import annotations

import numpy as np

STEP = 0.01
"""Seconds between places where it may be cut."""
QUIET = 0.2
"""Seconds around a cut whose loudness counts."""


def quiet_pieces(waveform: np.ndarray, sample_rate: int, *, most: int) -> list[np.ndarray]:
    """A waveform (n_samples,) in order, in pieces of at most `most` samples.

    Each ends at the quietest place of the second half of what it could be, so that few words are cut.
    """
    rest, found = waveform, list[np.ndarray]()
    step, width = max(1, round(STEP * sample_rate)), max(1, round(QUIET * sample_rate))
    while len(rest) > most:
        window = rest[most // 2 : most]
        loudness = np.convolve(
            np.square(window, dtype=np.float64), np.ones(min(width, len(window))), mode="same"
        )
        # Not so near its end that what is around it was not seen.
        places = loudness[: max(1, len(window) - width // 2) : step]
        cut = max(1, most // 2 + int((-places).argmax()) * step)
        found.append(rest[:cut])
        rest = rest[cut:]
    return [*found, rest] if len(rest) else found
