"""Writes mel.npz: 0.8 s of real speech and what other packages make of it, for tests/kernels/test_mel_golden.py.

    pip install ".[bench]" && python tests/golden/make_mel.py

The speech is a recording of the embedded set (muomni/data/embedded/ATTRIBUTION.md), cut; it is stored as int16 because
decoders differ in the last bit. Every second frame is kept. `versions` says which packages the figures came from.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path

import numpy as np
import torch

from muomni.data import embedded

PACKAGES = ("librosa", "openai-whisper", "transformers", "numpy", "torch")
N_SAMPLES = 12_800


def speech() -> np.ndarray:
    """The loudest stretch of the longest validation recording: (12,800,) int16 at 16 kHz."""
    item = max(embedded.SET.speech("validation"), key=lambda item: item.n_samples)
    wave = embedded.SET.waveform(item)
    starts = range(0, len(wave) - N_SAMPLES, 1_600)
    start = max(starts, key=lambda s: float(np.square(wave[s : s + N_SAMPLES]).sum()))
    return np.round(wave[start : start + N_SAMPLES] * 32_767).astype(np.int16)


def librosa_power(wave: np.ndarray, **options: object) -> np.ndarray:
    """(n_frames, n_mels) mel power, the last frame dropped."""
    mel = importlib.import_module("librosa").feature.melspectrogram(
        y=wave, sr=16_000, hop_length=160, power=2.0, center=True, pad_mode="reflect", **options
    )
    return mel.T[:-1]


def main() -> None:
    """Writes the file beside this one."""
    samples = speech()
    wave = samples.astype(np.float32) / 32_768
    whisper = importlib.import_module("whisper.audio")
    extractor = importlib.import_module("transformers").WhisperFeatureExtractor(feature_size=128)
    found = {
        "librosa_slaney_128": librosa_power(wave, n_fft=400, n_mels=128),
        "librosa_slaney_80": librosa_power(wave, n_fft=400, n_mels=80),
        "librosa_htk_80": librosa_power(
            wave, n_fft=512, win_length=400, n_mels=80, htk=True, norm="slaney", fmin=20.0, fmax=7_600.0
        ),
        "whisper_80": whisper.log_mel_spectrogram(torch.from_numpy(wave), n_mels=80).T.numpy(),
        "whisper_128": whisper.log_mel_spectrogram(torch.from_numpy(wave), n_mels=128).T.numpy(),
        "transformers_128": extractor(
            [wave], sampling_rate=16_000, padding="longest", truncation=False, return_tensors="np"
        )["input_features"][0].T,
    }
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    np.savez_compressed(
        Path(__file__).with_name("mel.npz"),
        samples=samples,
        versions=np.array(versions),
        **{name: values[::2].astype(np.float32) for name, values in found.items()},
    )


if __name__ == "__main__":
    main()
