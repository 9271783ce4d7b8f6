"""The compiled front end: instruction sets agree, arrays are checked, threads and clips change nothing."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from muomni_kernels import (
    cpp,
    log_mel,
    log_mel_downsample,
    mel_downsample,
    mel_filterbank,
    mel_reference,
    registry,
    use_backend,
)
from muomni_kernels.mel import PAGED
from muomni_kernels.mel_reference import MelSpec

native = cpp.extension()
needs_extension = pytest.mark.skipif(native is None, reason=cpp.available() or "")
LEVELS = native.simd_levels() if native else []
SPEC = {
    "sample_rate": 16_000, "n_fft": 400, "win_length": 400, "hop_length": 160, "n_mels": 128, "f_min": 0.0,
    "f_max": 8_000.0, "scale": "slaney", "padding": "causal", "log": "ln", "floor": 1e-7,
}  # fmt: skip


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 0.1


@needs_extension
@pytest.mark.parametrize("level", LEVELS)
# 400: radices 8 5 5; 512: 8 8 4; 486: 3 five times; 62 and 446: the primes 31 and 223; 4 and 6: one pass.
@pytest.mark.parametrize("n_fft", [4, 6, 10, 62, 400, 402, 446, 486, 512, 1_024])
def test_every_level_and_transform_length_equals_fp64(
    level: str, n_fft: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpp.SIMD_ENVIRONMENT, level)
    hop = max(1, n_fft * 2 // 5)
    changes: dict[str, Any] = {"n_fft": n_fft, "win_length": n_fft, "hop_length": hop, "n_mels": 23}
    wave = noise(hop * 37 + 1)
    expected = mel_reference.log_mel(wave.double(), MelSpec(**{**SPEC, **changes}))
    with use_backend("log_mel", "cpp"):
        found = log_mel(wave, **{**SPEC, **changes})
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


@needs_extension
def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpp.SIMD_ENVIRONMENT, "mmx")
    with pytest.raises(ValueError, match="no level mmx"):
        log_mel(noise(400))


@needs_extension
def test_logarithm_is_exact_over_the_whole_range() -> None:
    # The first bin of a pulse of height h has the power h squared.
    heights = np.geomspace(1e-15, 1e15, 401)
    clips = np.zeros((len(heights), 160), np.float32)
    filters = np.zeros((1, 201), np.float32)
    filters[0, 0] = 1.0
    clips[:, 0] = heights
    tables = native.MelTables(np.ones(400, np.float32), filters)
    out = np.full((len(heights), 1), np.nan, np.float32)
    offsets = np.arange(len(heights) + 1)
    kwargs = {
        "hop_length": 160,
        "padding": "causal",
        "log": "ln",
        "floor": 1.2e-38,
        "n_threads": 1,
        "simd": "",
    }
    assert native.log_mel(tables, clips.reshape(-1), offsets * 160, offsets, out, **kwargs) == -1
    expected = 2 * np.log(clips[:, 0].astype(np.float64))
    np.testing.assert_allclose(out[:, 0], expected, rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("backend", ["cpp", "reference"] if native else ["reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("log", ["ln", "whisper"])
def test_a_clip_that_is_not_finite_is_named(backend: str, value: float, log: str) -> None:
    wave = noise(5_000)
    wave[4_321] = value
    with use_backend("log_mel", backend), pytest.raises(ValueError, match="clip 2 holds a sample"):
        log_mel(wave, cu_samples=torch.tensor([0, 1_000, 3_000, 5_000]), log=log, n_threads=2)


@pytest.mark.parametrize("backend", ["cpp", "reference"] if native else ["reference"])
@pytest.mark.parametrize(
    "wave",
    [
        torch.zeros(801),
        torch.ones(801),
        -torch.ones(801),
        torch.eye(801)[400],
        torch.full((801,), -32_768).short(),
    ],
    ids=["silence", "direct current", "negative", "impulse", "full scale"],
)
def test_extreme_clips_equal_fp64(backend: str, wave: torch.Tensor) -> None:
    with use_backend("log_mel", backend):
        found = log_mel(wave, floor=1e-7)
    wide = wave.double() / (32_768 if wave.dtype == torch.int16 else 1)
    # A constant's far bands hold what rounding leaves of a cancelled sum: the floor hides it.
    torch.testing.assert_close(
        found.double(), mel_reference.log_mel(wide, MelSpec(**SPEC)), rtol=0, atol=1e-3
    )


@needs_extension
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 1_500), max_size=8),
    padding=st.sampled_from(["causal", "reflect"]),
    n_threads=st.integers(1, 4),
    int16=st.booleans(),
)
def test_any_ragged_batch_equals_the_reference(
    lengths: list[int], padding: str, n_threads: int, int16: bool
) -> None:
    lengths = [n for n in lengths if padding == "causal" or not 160 <= n <= 200]
    wave = noise(sum(lengths), seed=len(lengths))
    wave = (wave * 8_000).short() if int16 else wave
    cu = np.array([0, *np.cumsum(lengths)], np.int32)
    found = {}
    for backend in ("cpp", "reference"):
        with use_backend("log_mel", backend):
            found[backend] = log_mel(wave, cu_samples=cu, padding=padding, n_threads=n_threads, floor=1e-7)
    torch.testing.assert_close(found["cpp"], found["reference"], rtol=0, atol=1e-3)


@needs_extension
def test_reads_sliced_and_read_only_arrays() -> None:
    wave = noise(4_000)
    expected = log_mel(wave[::2].contiguous())
    frozen = wave[::2].numpy().copy()
    frozen.setflags(write=False)
    backwards = np.ascontiguousarray(frozen[::-1])[::-1]
    for given_wave in (wave[::2], wave[::2].numpy(), frozen, backwards):
        assert torch.equal(log_mel(given_wave), expected)


@pytest.mark.parametrize("backend", ["cpp", "reference"] if native else ["reference"])
def test_out_is_written_and_returned(backend: str) -> None:
    buffer = torch.full((12, 128), float("nan"))
    with use_backend("log_mel", backend):
        found = log_mel(noise(1_600), out=buffer[1:11])
        assert torch.equal(found, log_mel(noise(1_600)))
    assert found.data_ptr() == buffer[1:].data_ptr()
    assert buffer.isnan().any(1).tolist() == [True] + [False] * 10 + [True]
    for wrong in (
        torch.empty(11, 128),
        torch.empty(10, 128, dtype=torch.float64),
        torch.empty(10, 256)[:, ::2],
    ):
        with pytest.raises(ValueError, match="out: expected"):
            log_mel(noise(1_600), out=wrong)


def test_a_waveform_with_gradient_gets_one() -> None:
    wave = noise(800).requires_grad_()
    (gradient,) = torch.autograd.grad(log_mel(wave, floor=1e-7).sum(), wave)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    with torch.no_grad():
        assert not log_mel(wave).requires_grad


def test_tables_built_in_inference_mode_serve_training() -> None:
    mel_filterbank.cache_clear()
    with torch.inference_mode():
        filters = mel_filterbank(n_mels=20, n_fft=100, sample_rate=16_000)
    spectrum = torch.rand(51, requires_grad=True)
    (filters @ spectrum).sum().backward()
    assert spectrum.grad is not None


def test_zero_clips_and_zero_rows_are_empty() -> None:
    for backend in ("cpp", "reference") if native else ("reference",):
        with use_backend(None, backend):
            assert log_mel(torch.zeros(0), cu_samples=torch.tensor([0])).shape == (0, 128)
            assert log_mel(torch.zeros(0)).shape == (0, 128)
            assert log_mel(torch.zeros(0, 400)).shape == (0, 3, 128)
            assert mel_downsample(torch.zeros(0, 5), cu_frames=torch.tensor([0])).shape == (0, 40)


@needs_extension
def test_threads_of_python_share_one_table() -> None:
    wave, expected = noise(8_000), log_mel(noise(8_000))
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(log_mel(wave, n_threads=2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(one, expected) for one in found)


@needs_extension
def test_max_follows_torch_with_ties_and_nan() -> None:
    frames = torch.tensor([[1.0, 2.0], [1.0, float("nan")], [0.0, 5.0]], requires_grad=True)
    for backend in ("cpp", "reference"):
        with use_backend("mel_downsample", backend):
            found = mel_downsample(frames, factor=3, mode="max")
        (gradient,) = torch.autograd.grad(found.sum(), frames)
        assert found[0, 0] == 1.0
        assert found[0, 1].isnan()
        assert gradient.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_doctor_and_forcing_know_both_backends() -> None:
    assert [row.name for row in registry.backends("log_mel")] == ["cpp", "reference"]
    wave = noise(400).requires_grad_()
    with (
        use_backend("log_mel", "cpp"),
        pytest.raises(RuntimeError, match="has no gradient" if native else "not built"),
    ):
        log_mel(wave)


def arguments(**changes: Any) -> tuple[list[Any], dict[str, Any]]:
    """A call of the extension's log_mel, with some arguments replaced."""
    values: dict[str, Any] = {
        "tables": native.MelTables(np.ones(400, np.float32), np.ones((4, 201), np.float32)),
        "waveform": np.zeros(320, np.float32), "cu_samples": np.array([0, 320]),
        "cu_frames": np.array([0, 2]),
        "out": np.zeros((2, 4), np.float32), "hop_length": 160, "padding": "causal", "log": "ln",
        "floor": 1e-10, "n_threads": 1, "simd": "",
    }  # fmt: skip
    values |= changes
    names = ("tables", "waveform", "cu_samples", "cu_frames", "out")
    return [values.pop(name) for name in names], values


@needs_extension
@pytest.mark.parametrize(
    "changes",
    [
        {"cu_samples": np.array([0, 321])},
        {"cu_samples": np.array([1, 320])},
        {"cu_samples": np.array([], np.int64)},
        {"cu_samples": np.array([[0, 320]])},
        {"cu_samples": np.array([0, 400, 320]), "cu_frames": np.array([0, 2, 2])},
        {"cu_samples": np.array([0, 160, 320])},
        {"cu_frames": np.array([0, 3])},
        {"cu_frames": np.array([0, 3]), "out": np.zeros((3, 4), np.float32)},
        {"cu_frames": np.array([0, 2**62])},
        {"out": np.zeros((2, 5), np.float32)},
        {"out": np.zeros(8, np.float32)},
        {"hop_length": 0},
        {"hop_length": 401},
        {"hop_length": 2**40},
        {"padding": "same"},
        {"log": "log2"},
        {"floor": 0.0},
        {"floor": float("nan")},
        {"n_threads": 0},
        {"n_threads": 2**31},
        {"padding": "reflect", "waveform": np.zeros(200, np.float32), "cu_samples": np.array([0, 200]),
         "cu_frames": np.array([0, 1]), "out": np.zeros((1, 4), np.float32)},
    ],
    ids=lambda changes: "-".join(changes),
)  # fmt: skip
def test_the_extension_itself_refuses_what_would_leave_its_arrays(changes: dict[str, Any]) -> None:
    positional, named = arguments()
    assert native.log_mel(*positional, **named) == -1
    positional, named = arguments(**changes)
    with pytest.raises(ValueError):
        native.log_mel(*positional, **named)


@needs_extension
def test_the_extension_never_writes_to_a_copy() -> None:
    for wrong in (np.zeros((2, 8), np.float32)[:, ::2], np.zeros((2, 4)), np.zeros((4, 2), np.float32).T):
        positional, named = arguments(out=wrong)
        with pytest.raises(TypeError):
            native.log_mel(*positional, **named)
    locked = np.zeros((2, 4), np.float32)
    locked.setflags(write=False)
    positional, named = arguments(out=locked)
    with pytest.raises(ValueError, match="writeable"):
        native.log_mel(*positional, **named)


@needs_extension
def test_tables_and_downsample_refuse_wrong_shapes() -> None:
    for window, filters in (
        ((401,), (4, 201)),
        ((2,), (4, 2)),
        ((400,), (4, 200)),
        ((400,), (0, 201)),
        ((20, 20), (4, 201)),
    ):
        with pytest.raises(ValueError):
            native.MelTables(np.ones(window, np.float32), np.ones(filters, np.float32))
    frames, rows = np.zeros((9, 3), np.float32), np.zeros((2, 24), np.float32)
    cu, out_cu = np.array([0, 9]), np.array([0, 2])
    native.downsample(frames, cu, out_cu, 8, "stack", rows)
    for bad in (
        (frames, cu, np.array([0, 1]), 8, "stack", rows[:1]),
        (frames, cu, out_cu, 8, "mean", rows),
        (frames, np.array([0, 10]), out_cu, 8, "stack", rows),
        (frames, cu, out_cu, 0, "stack", rows),
        (frames, cu, out_cu, 2**62, "stack", rows),
        (frames, cu, out_cu, 8, "pick", rows),
    ):
        with pytest.raises(ValueError):
            native.downsample(*bad)
    with pytest.raises(ValueError, match="shape of d_frames"):
        native.downsample_backward(np.zeros((2, 3), np.float32), frames[:8], cu, out_cu, 8, "max", frames)


def test_large_results_begin_on_a_cache_line_and_hold_the_same() -> None:
    clip = noise(16_000 * 30)
    alone = log_mel(clip)
    n = PAGED // alone.nbytes + 1
    for dtype, factor in ((torch.float32, 1), (torch.bfloat16, 2)):
        found = log_mel_downsample(clip.repeat(n * factor, 1), dtype=dtype)
        assert found.nbytes > PAGED
        assert found.data_ptr() % 64 == 0
        expected = mel_downsample(alone).to(dtype)
        assert all(torch.equal(rows, expected) for rows in found)


def test_a_batch_of_no_clips_keeps_its_frames() -> None:
    assert log_mel(torch.zeros(0, 1_600)).shape == (0, 10, 128)
    assert log_mel_downsample(torch.zeros(0, 1_600), mode="mean").shape == (0, 2, 128)
