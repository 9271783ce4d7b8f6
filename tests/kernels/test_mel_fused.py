"""log_mel_downsample: log_mel followed by mel_downsample, whatever the clips, threads and CPU.

Bit for bit, but for the mean of eight, which AVX2 and AVX-512 take with one logarithm.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from muomni_kernels import cpp, log_mel, log_mel_downsample, mel_downsample, mel_frames, registry, use_backend

native = cpp.extension()
needs_extension = pytest.mark.skipif(native is None, reason=cpp.available() or "")
BACKENDS = ["cpp", "reference"] if native else ["reference"]
LEVELS = native.simd_levels() if native else []
MODES = ["stack", "mean", "max"]
DTYPES = [torch.float32, torch.bfloat16]


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 0.1


def offsets(lengths: list[int]) -> np.ndarray:
    return np.array([0, *np.cumsum(lengths)], np.int64)


def composed(wave: torch.Tensor, lengths: list[int], factor: int, mode: str, **options: Any) -> torch.Tensor:
    """The two public ops, with every frame in memory between them."""
    frames = log_mel(wave, cu_samples=offsets(lengths), **options)
    hop, padding = options.get("hop_length", 160), options.get("padding", "causal")
    n_frames = [mel_frames(n, hop_length=hop, padding=padding) for n in lengths]
    return mel_downsample(frames, factor=factor, mode=mode, cu_frames=offsets(n_frames))


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert torch.equal(bits(found), bits(expected))


def assert_agree(found: torch.Tensor, expected: torch.Tensor, *, one_logarithm: bool) -> None:
    if not one_logarithm:
        return assert_same_bits(found, expected)
    if found.dtype == torch.float32:
        return torch.testing.assert_close(found, expected, rtol=2e-7, atol=4e-6)
    # The two may round to neighbours.
    return torch.testing.assert_close(found, expected, rtol=2**-7, atol=4e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.sampled_from([0, 1, 160, 161]), st.integers(0, 6_000)), max_size=7),
    factor=st.one_of(st.integers(1, 16), st.just(8), st.just(1_000)),
    n_mels=st.sampled_from([21, 24]),
    padding=st.sampled_from(["causal", "reflect"]),
    log=st.sampled_from(["ln", "whisper"]),
    n_threads=st.integers(1, 4),
    int16=st.booleans(),
)
def test_any_ragged_batch_equals_the_two_steps(
    backend: str,
    mode: str,
    dtype: torch.dtype,
    lengths: list[int],
    factor: int,
    n_mels: int,
    padding: str,
    log: str,
    n_threads: int,
    int16: bool,
) -> None:
    lengths = [n for n in lengths if padding == "causal" or not 160 <= n <= 200]
    wave = noise(sum(lengths), seed=len(lengths))
    wave = (wave * 8_000).short() if int16 else wave
    options: dict[str, Any] = {"padding": padding, "log": log, "n_mels": n_mels, "floor": 1e-7}
    with use_backend(None, backend):
        expected = composed(wave, lengths, factor, mode, **options).to(dtype)
        out = torch.full(expected.shape, float("nan"), dtype=dtype)
        found = log_mel_downsample(
            wave, cu_samples=offsets(lengths), factor=factor, mode=mode, dtype=dtype, out=out,
            n_threads=n_threads, **options,
        )  # fmt: skip
    assert found.data_ptr() == out.data_ptr()
    one_logarithm = backend == "cpp" and factor == 8 and mode == "mean" and log == "ln"
    assert_agree(found, expected, one_logarithm=one_logarithm)


@needs_extension
@pytest.mark.parametrize("log", ["ln", "whisper"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_equals_the_two_steps(
    level: str, mode: str, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpp.SIMD_ENVIRONMENT, level)
    lengths = [4_001, 0, 1, 9_999, 1_280]
    wave, options = noise(sum(lengths)), {"log": log, "padding": "reflect"}
    with use_backend(None, "cpp"):
        for dtype in DTYPES:
            found = log_mel_downsample(wave, cu_samples=offsets(lengths), mode=mode, dtype=dtype, **options)
            expected = composed(wave, lengths, 8, mode, **options).to(dtype)
            assert_agree(found, expected, one_logarithm=mode == "mean" and log == "ln")
    with use_backend(None, "reference"):
        expected = composed(wave, lengths, 8, mode, **options)
    with use_backend(None, "cpp"):
        found = log_mel_downsample(wave, cu_samples=offsets(lengths), mode=mode, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_equals_its_clips_and_lands_in_its_slice(backend: str) -> None:
    wave = noise(3 * 3_000).view(3, 3_000)
    buffer = torch.full((5, 3, 8 * 128), float("nan"), dtype=torch.bfloat16)
    with use_backend(None, backend):
        found = log_mel_downsample(wave, dtype=torch.bfloat16, out=buffer[1:4])
        assert found.data_ptr() == buffer[1].data_ptr()
        for clip, rows in zip(wave, found, strict=True):
            assert_same_bits(rows, log_mel_downsample(clip.numpy(), dtype=torch.bfloat16))
    assert buffer.isnan().all(-1).all(-1).tolist() == [True, False, False, False, True]
    assert not buffer[1:4].isnan().any()


@needs_extension
def test_bfloat16_rounds_halves_to_even() -> None:
    # A pulse of height h has the power h squared in its first bin: heights around values half way between two.
    between = (torch.arange(0x3F80, 0x3FC0, dtype=torch.int32) << 16 | 0x8000).view(torch.float32)
    steps = torch.arange(-40, 41, dtype=torch.int32)
    heights = ((between / 2).exp().view(torch.int32)[:, None] + steps).view(torch.float32).reshape(-1)
    clips = np.zeros((len(heights), 160), np.float32)
    clips[:, 0] = heights
    filters = np.zeros((1, 201), np.float32)
    filters[0, 0] = 1.0
    tables = native.MelTables(np.ones(400, np.float32), filters)
    at = np.arange(len(heights) + 1)
    exact, found = torch.zeros(len(heights), 1), torch.zeros(len(heights), 1, dtype=torch.bfloat16)
    for out in (exact.numpy(), found.view(torch.uint16).numpy()):
        native.log_mel_downsample(
            tables, clips.reshape(-1), at * 160, at, at, out, factor=1, mode="mean", hop_length=160,
            padding="causal", log="ln", floor=1e-7, n_threads=1, simd="",
        )  # fmt: skip
    halves = exact[(exact.view(torch.int32) & 0xFFFF) == 0x8000].view(torch.int32) >> 16
    assert {int(half) & 1 for half in halves} == {0, 1}, "no value half way above an even and an odd one"
    assert_same_bits(found, exact.to(torch.bfloat16))


@pytest.mark.parametrize("log", ["ln", "whisper"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_clip_that_is_not_finite_is_named(backend: str, value: float, log: str) -> None:
    wave = noise(9_000)
    wave[8_321] = value
    for mode in MODES:
        with use_backend(None, backend), pytest.raises(ValueError, match="clip 3 holds a sample"):
            log_mel_downsample(
                wave, cu_samples=np.array([0, 1_000, 1_000, 3_000, 9_000]), log=log, mode=mode, n_threads=3
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_clips_and_no_rows_are_empty(backend: str) -> None:
    with use_backend(None, backend):
        for log in ("ln", "whisper"):
            assert log_mel_downsample(torch.zeros(0), log=log).shape == (0, 1_024)
            assert log_mel_downsample(torch.zeros(0), cu_samples=np.array([0]), log=log).shape == (0, 1_024)
            assert log_mel_downsample(torch.zeros(0, 400), mode="mean", log=log).shape == (0, 1, 128)
            assert log_mel_downsample(torch.zeros(2, 0), log=log).shape == (2, 0, 1_024)


def test_a_waveform_with_gradient_gets_one() -> None:
    wave = noise(2_000).requires_grad_()
    (found,) = torch.autograd.grad(log_mel_downsample(wave, mode="mean", floor=1e-7).sum(), wave)
    (expected,) = torch.autograd.grad(mel_downsample(log_mel(wave, floor=1e-7), mode="mean").sum(), wave)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0
    half = log_mel_downsample(wave, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.requires_grad
    with torch.no_grad():
        assert not log_mel_downsample(wave).requires_grad


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"waveform": torch.zeros(10, dtype=torch.float64)}, "float32 or int16"),
        ({"factor": 0}, "factor, mode: expected"),
        ({"factor": 65_537}, "factor, mode: expected"),
        ({"mode": "pick"}, "stack, mean or max"),
        ({"dtype": torch.float16}, "dtype: expected torch.float32 or torch.bfloat16, got torch.float16"),
        ({"cu_samples": np.array([0, 500, 400, 2_000])}, "rising from 0 to 2000"),
        ({"cu_samples": np.array([0, 170, 2_000]), "padding": "reflect"}, "clip 0 of 170 samples is too short"),
        ({"out": torch.empty(3, 1_024)}, r"out: expected contiguous float32 \(2, 1024\)"),
        ({"out": torch.empty(2, 1_024), "dtype": torch.bfloat16}, "out: expected contiguous bfloat16"),
        ({"out": torch.empty(2, 2_048)[:, ::2]}, "out: expected contiguous"),
        ({"log": "log2"}, "ln or whisper"),
        ({"n_threads": 0}, "n_threads: expected 1 to 1024"),
    ],
    # An empty tensor would be another name in every process.
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_wrong_arguments_are_named(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        log_mel_downsample(**{"waveform": torch.zeros(2_000), **changes})


def test_both_backends_are_registered() -> None:
    registry.load()
    assert [row.name for row in registry.backends("log_mel_downsample")] == ["cpp", "reference"]


@needs_extension
@pytest.mark.parametrize(
    "changes",
    [
        {"cu_samples": np.array([0, 321])},
        {"cu_frames": np.array([0, 3])},
        {"cu_frames": np.array([], np.int64)},
        {"cu_frames": np.array([0, 2**62])},
        {"cu_rows": np.array([0, 2])},
        {"cu_rows": np.array([0, 1, 1])},
        {"cu_rows": np.array([0, 2]), "out": np.zeros((2, 32), np.float32)},
        {"out": np.zeros((1, 4), np.float32)},
        {"out": np.zeros(32, np.float32)},
        {"factor": 0},
        {"factor": 2**62},
        {"mode": "pick"},
        {"mode": "mean"},
        {"n_threads": 0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_the_extension_itself_refuses_what_would_leave_its_arrays(changes: dict[str, Any]) -> None:
    def run(**changes: Any) -> int:
        values: dict[str, Any] = {
            "tables": native.MelTables(np.ones(400, np.float32), np.ones((4, 201), np.float32)),
            "waveform": np.zeros(320, np.float32), "cu_samples": np.array([0, 320]),
            "cu_frames": np.array([0, 2]), "cu_rows": np.array([0, 1]), "out": np.zeros((1, 32), np.float32),
            "factor": 8, "mode": "stack", "hop_length": 160, "padding": "causal", "log": "ln",
            "floor": 1e-10, "n_threads": 1, "simd": "",
        } | changes  # fmt: skip
        arrays = [values.pop(name) for name in list(values)[:6]]
        return native.log_mel_downsample(*arrays, **values)

    assert run() == -1
    with pytest.raises(ValueError):
        run(**changes)
    with pytest.raises(TypeError):
        run(out=np.zeros((1, 32)))
