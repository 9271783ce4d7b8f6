"""Multi-resolution STFT distance: closed forms."""

import math

import numpy as np
import pytest

from muomni.metrics.stft import magnitudes, multi_resolution_distance

NOISE = np.random.default_rng(0).standard_normal(8_000)


def test_a_scaled_copy_is_as_far_as_its_gain() -> None:
    # Every magnitude is g times as large: convergence |1 - g|, log magnitudes |ln g| apart.
    assert multi_resolution_distance(NOISE, NOISE) == 0
    expected = 0.75 + abs(math.log(0.25))
    assert multi_resolution_distance(NOISE, 0.25 * NOISE) == pytest.approx(expected, rel=1e-6)


def test_a_sine_has_its_energy_at_its_bin() -> None:
    wave = np.sin(2 * np.pi * 64 / 512 * np.arange(2_000))
    found = magnitudes(wave, n_fft=512, hop_length=50, win_length=240)
    # Frames that start at 0, 50 ... until the last sample lies in one.
    assert found.shape == (37, 257)
    assert (found[:35].argmax(1) == 64).all()
    # A Hann window of 240 sums to 120, half of it falls on the positive frequency.
    assert found[0, 64] == pytest.approx(60, rel=1e-3)


def test_silence_and_short_clips_have_a_finite_distance() -> None:
    assert multi_resolution_distance(np.zeros(100), np.zeros(100)) == 0
    assert math.isfinite(multi_resolution_distance(np.zeros(3_000), NOISE[:3_000]))


def test_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        multi_resolution_distance(NOISE, NOISE[:-1])
