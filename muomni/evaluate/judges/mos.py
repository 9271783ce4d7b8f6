"""DNSMOS P.835 (Reddy, Gopal and Cutler, 2022): quality of speech as listeners would rate it, without a reference."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from muomni.data.sources.fetch import fetch
from muomni.evaluate.judges.package import Judge, as_clip, pypi

JUDGE = Judge(
    about="DNSMOS P.835, overall quality (speechmos 0.0.1.1 by onnxruntime; MIT)",
    packages=(
        pypi(
            "speechmos", "0.0.1.1", "31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7", 9_439_732,
            "MIT", "DNSMOS, Copyright Microsoft Corporation", "DNSMOS P.835",
        ),
    ),
    needs=("onnxruntime",),
)  # fmt: skip
SAMPLE_RATE = 16_000
WINDOW = 144_160
"""Samples the network hears at once: 9.01 s."""
OVERALL = (-0.06766283, 1.11546468, 0.04602535)
"""Its published calibration of the overall rating: a polynomial, highest power first."""


def windows(waveform: np.ndarray) -> np.ndarray:
    """A clip (n_samples,) -> (n, WINDOW): a window every second, a short clip doubled until it fills one.

    As the package means to count them, by whole seconds: the last window of a clip of 12.2 s starts at 2 s. (From the
    eighth on its rounding leaves windows out; here they are heard.)
    """
    as_clip(waveform)
    while len(waveform) < WINDOW:
        waveform = np.concatenate([waveform, waveform])
    whole = len(waveform) // SAMPLE_RATE * SAMPLE_RATE
    n = max(0, whole - WINDOW) // SAMPLE_RATE + 1
    return np.lib.stride_tricks.sliding_window_view(waveform, WINDOW)[::SAMPLE_RATE][:n]


class MosPredictor:
    """Clips to a predicted mean opinion score."""

    def __init__(self, cache: Path, *, n_threads: int = 1) -> None:
        """Load the network from cache, fetching it if needed. Raises SourceError."""
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = n_threads
        network = fetch(JUDGE.packages[0], cache) / "speechmos" / "dnsmos_models" / "sig_bak_ovr.onnx"
        self._network = runtime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])

    def __call__(self, waveform: np.ndarray) -> float:
        """(n_samples,) float32 in [-1, 1] at 16 kHz -> overall quality, 1 to 5, the mean of all windows."""
        raw = [
            float(self._network.run(None, {"input_1": window[None].astype(np.float32)})[0][0][2])
            for window in windows(np.clip(waveform, -1.0, 1.0))
        ]
        return float(np.mean(np.polyval(OVERALL, raw)))
