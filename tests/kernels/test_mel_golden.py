"""log_mel against librosa, openai-whisper and transformers on real speech: their own outputs, kept in tests/golden."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from muomni_kernels import cpp, log_mel, use_backend

GOLDEN = Path(__file__).parents[1] / "golden" / "mel.npz"
BACKENDS = [
    pytest.param("cpp", marks=pytest.mark.skipif(cpp.extension() is None, reason=cpp.available() or "")),
    "reference",
]
WHISPER: dict[str, Any] = {"padding": "reflect", "log": "whisper"}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def test_the_recording_is_speech_and_the_packages_are_named(golden: dict[str, np.ndarray]) -> None:
    assert golden["samples"].dtype == np.int16
    assert np.abs(golden["samples"]).max() > 3_000
    assert {str(line).split()[0] for line in golden["versions"]} >= {
        "librosa",
        "openai-whisper",
        "transformers",
    }
    assert GOLDEN.stat().st_size < 200_000


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("librosa_slaney_128", {}),
        ("librosa_slaney_80", {"n_mels": 80}),
        (
            "librosa_htk_80",
            {"n_fft": 512, "win_length": 400, "n_mels": 80, "scale": "htk", "f_min": 20.0, "f_max": 7_600.0},
        ),
    ],
)
def test_librosa(name: str, options: dict[str, Any], backend: str, golden: dict[str, np.ndarray]) -> None:
    with use_backend("log_mel", backend):
        found = log_mel(golden["samples"], padding="reflect", **options)[::2]
    expected = torch.from_numpy(golden[name]).clamp(min=1e-10).log()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["whisper_80", "whisper_128", "transformers_128"])
def test_whispers_convention(name: str, backend: str, golden: dict[str, np.ndarray]) -> None:
    with use_backend("log_mel", backend):
        found = log_mel(golden["samples"], n_mels=int(name.split("_")[1]), **WHISPER)[::2]
    torch.testing.assert_close(found, torch.from_numpy(golden[name]), rtol=0, atol=1e-3)
