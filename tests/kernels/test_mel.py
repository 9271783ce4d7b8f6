"""The audio front end: the C++ extension and the reference against fp64, length rules, ragged batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from muomni_kernels import (
    cpp,
    log_mel,
    mel_downsample,
    mel_filterbank,
    mel_frames,
    mel_reference,
    use_backend,
)
from muomni_kernels.mel_reference import MelSpec

BACKENDS = [
    pytest.param("cpp", marks=pytest.mark.skipif(cpp.extension() is None, reason=cpp.available() or "")),
    "reference",
]
DEFAULTS = {
    "sample_rate": 16_000, "n_fft": 400, "win_length": 400, "hop_length": 160, "n_mels": 128, "f_min": 0.0,
    "f_max": 8_000.0, "scale": "slaney", "padding": "causal", "log": "ln", "floor": 1e-10,
}  # fmt: skip


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 0.1


def direct(wave: np.ndarray, t: int, spec: MelSpec) -> np.ndarray:
    """Frame t by the definition of the Fourier transform, in fp64."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.win_length) / spec.win_length)
    left = (spec.n_fft - spec.win_length) // 2
    window = np.pad(hann, (left, spec.n_fft - spec.win_length - left))
    start = (
        (t + 1) * spec.hop_length - spec.n_fft
        if spec.padding == "causal"
        else t * spec.hop_length - spec.n_fft // 2
    )
    at = np.arange(start, start + spec.n_fft)
    if spec.padding == "reflect":
        at = np.abs(at)
        at = np.where(at >= len(wave), 2 * (len(wave) - 1) - at, at)
    samples = np.where((at >= 0) & (at < len(wave)), wave[np.clip(at, 0, len(wave) - 1)], 0.0) * window
    angles = -2j * np.pi * np.outer(np.arange(spec.n_fft // 2 + 1), np.arange(spec.n_fft)) / spec.n_fft
    power = np.abs(np.exp(angles) @ samples) ** 2
    filters = mel_filterbank(
        n_mels=spec.n_mels, n_fft=spec.n_fft, sample_rate=spec.sample_rate,
        f_min=spec.f_min, f_max=spec.f_max, scale=spec.scale,
    ).double().numpy()  # fmt: skip
    return np.log(np.maximum(filters @ power, spec.floor))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"padding": "reflect"},
        {"n_fft": 512, "n_mels": 80},
        {"n_fft": 512, "win_length": 400, "scale": "htk", "f_min": 20.0, "f_max": 7_600.0, "n_mels": 80},
        {"n_fft": 462, "win_length": 300, "hop_length": 77, "n_mels": 40},
    ],
    ids=str,
)
def test_frames_equal_the_definition(
    backend: str,
    changes: dict,
) -> None:
    spec = MelSpec(**{**DEFAULTS, **changes})
    wave = noise(2_345)
    with use_backend("log_mel", backend):
        found = log_mel(wave, **{**DEFAULTS, **changes})
    assert len(found) == mel_frames(2_345, hop_length=spec.hop_length, padding=spec.padding)
    for t in (0, 1, len(found) // 2, len(found) - 1):
        # Bands near the floor are sums of cancelled terms: fp32 keeps 1e-3 in ln there.
        np.testing.assert_allclose(found[t].numpy(), direct(wave.double().numpy(), t, spec), atol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_error_in_whispers_scale_is_small(backend: str) -> None:
    wave = noise(16_000 * 3)
    spec = MelSpec(**{**DEFAULTS, "padding": "reflect", "log": "whisper"})
    with use_backend("log_mel", backend):
        found = log_mel(wave, padding="reflect", log="whisper")
    assert found.shape == (300, 128)
    error = (found - mel_reference.log_mel(wave.double(), spec)).abs().max()
    assert error < {"cpp": 2e-5, "reference": 4e-5}[backend], "the extension is more exact than fp32 PyTorch"
    assert found.max() <= 2.0
    assert found.max() - found.min() <= 2.0 + 1e-6


@pytest.mark.parametrize("log", ["ln", "whisper"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ragged_batch_gives_each_clip_what_it_gives_alone_bit_for_bit(backend: str, log: str) -> None:
    clips = [noise(n, seed=n) for n in (1, 160, 4_001, 161, 0, 2_000)]
    cu = torch.tensor([0, *np.cumsum([len(c) for c in clips])])
    with use_backend("log_mel", backend):
        together = log_mel(torch.cat(clips), cu_samples=cu, log=log)
        alone = torch.cat([log_mel(c, log=log) for c in clips if len(c)])
        threaded = log_mel(torch.cat(clips), cu_samples=cu, log=log, n_threads=3)
        batch = log_mel(torch.stack([clips[2], clips[2] * 0.5]), log=log)
    assert torch.equal(together, alone)
    assert torch.equal(together, threaded)
    assert torch.equal(batch[0], alone[2 : 2 + 26])


@pytest.mark.parametrize("backend", BACKENDS)
def test_int16_is_float_divided_by_32768(backend: str) -> None:
    samples = (noise(3_000) * 20_000).to(torch.int16)
    with use_backend("log_mel", backend):
        assert torch.equal(log_mel(samples), log_mel(samples.float() / 32_768))
        assert torch.equal(log_mel(samples.numpy()), log_mel(samples))


@given(n=st.integers(0, 5_000), hop=st.integers(1, 400), padding=st.sampled_from(["causal", "reflect"]))
def test_length_rules(n: int, hop: int, padding: str) -> None:
    assert mel_frames(n, hop_length=hop, padding=padding) == (
        math.ceil(n / hop) if padding == "causal" else n // hop
    )


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 3_000), cut=st.integers(1, 3_000))
def test_causal_frames_never_see_the_future(n: int, cut: int) -> None:
    wave = noise(n)
    cut = min(cut, n)
    whole, part = log_mel(wave), log_mel(wave[:cut])
    complete = cut // 160
    assert torch.equal(whole[:complete], part[:complete])


def test_filters_have_unit_area_and_overlap() -> None:
    for scale in ("slaney", "htk"):
        filters = mel_filterbank(n_mels=40, n_fft=8_192, sample_rate=16_000, scale=scale)
        np.testing.assert_allclose(filters.sum(1) * 16_000 / 8_192, 1.0, rtol=0.03)
        assert (filters[:, 1:-1].sum(0) > 0).all()
    assert (mel_filterbank(n_mels=128, n_fft=400, sample_rate=16_000) > 0).sum() == 394


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"waveform": torch.zeros(10, dtype=torch.float64)}, "float32 or int16"),
        ({"waveform": torch.zeros(2, 3, 4)}, "flat with cu_samples"),
        ({"waveform": torch.zeros(100), "padding": "reflect", "hop_length": 50}, "too short to reflect"),
        ({"waveform": torch.zeros(100), "padding": "same"}, "causal or reflect"),
        ({"waveform": torch.zeros(100), "n_fft": 401}, "even number"),
        (
            {"waveform": torch.zeros(100), "cu_samples": torch.tensor([0, 50, 40, 100])},
            "rising from 0 to 100",
        ),
        ({"waveform": torch.zeros(100), "cu_samples": torch.tensor([0, 50])}, "rising from 0 to 100"),
        ({"waveform": torch.zeros(100), "f_max": 9_000.0}, "f_min < f_max"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        log_mel(**arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["stack", "mean", "max"])
@pytest.mark.parametrize("factor", [1, 3, 8])
def test_downsample_groups_stay_inside_their_clip(backend: str, mode: str, factor: int) -> None:
    lengths = [1, 8, 19, 0, 7]
    frames = torch.randn(sum(lengths), 5, generator=torch.Generator().manual_seed(1))
    cu = torch.tensor([0, *np.cumsum(lengths)])
    with use_backend("mel_downsample", backend):
        found = mel_downsample(frames, factor=factor, mode=mode, cu_frames=cu)
    expected = []
    for start, n in zip(cu[:-1].tolist(), lengths, strict=True):
        for at in range(0, n, factor):
            group = frames[start + at : start + min(at + factor, n)]
            if mode == "stack":
                expected.append(torch.cat((group.flatten(), torch.zeros((factor - len(group)) * 5))))
            else:
                expected.append(group.mean(0) if mode == "mean" else group.max(0).values)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["stack", "mean", "max"])
def test_downsample_gradients_agree_between_backends_and_with_gradcheck(mode: str) -> None:
    frames = torch.randn(19, 4, generator=torch.Generator().manual_seed(2))
    cu = torch.tensor([0, 11, 19])
    grads = []
    for backend in ("cpp", "reference") if cpp.extension() else ("reference",):
        x = frames.clone().requires_grad_()
        with use_backend("mel_downsample", backend):
            (mel_downsample(x, factor=4, mode=mode, cu_frames=cu).square() * 0.5).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[-1])
    wide = frames.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: mel_downsample(t, factor=4, mode=mode, cu_frames=cu), (wide,))


def test_downsample_rejects_what_it_cannot_group() -> None:
    with pytest.raises(ValueError, match="frames: expected"):
        mel_downsample(torch.zeros(4))
    with pytest.raises(ValueError, match="stack, mean or max"):
        mel_downsample(torch.zeros(4, 2), mode="pick")
    with pytest.raises(ValueError, match="cu_frames"):
        mel_downsample(torch.zeros(4, 2), cu_frames=torch.tensor([0, 5]))
