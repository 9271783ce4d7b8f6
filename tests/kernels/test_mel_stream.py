"""StreamingLogMel gives log_mel's frames, bit for bit, however the waveform is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from muomni_kernels import StreamingLogMel, cpp, log_mel, use_backend

BACKENDS = ["cpp", "reference"] if cpp.extension() else ["reference"]
SPECS = [{}, {"n_fft": 512, "win_length": 480, "hop_length": 100, "n_mels": 40}, {"hop_length": 400}]


def noise(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 0.1


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.integers(0, 900), max_size=12),
    spec=st.sampled_from(SPECS),
    backend=st.sampled_from(BACKENDS),
    integers=st.booleans(),
)
def test_any_chunking_equals_the_whole(chunks: list[int], spec: dict, backend: str, integers: bool) -> None:
    wave = noise(sum(chunks), seed=len(chunks))
    if integers:
        wave = (wave * 32_767).to(torch.int16)
    with use_backend("log_mel", backend):
        stream = StreamingLogMel(**spec)
        parts = [stream.push(part) for part in wave.split(chunks)] if chunks else []
        found = torch.cat([*parts, stream.finish()])
        expected = log_mel(wave, **spec)
    if backend == "cpp":
        assert torch.equal(found, expected)
    else:
        # PyTorch's FFT and product over fewer frames round differently.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_a_frame_comes_with_its_last_sample_and_not_before() -> None:
    stream = StreamingLogMel()
    assert [len(stream.push(noise(n, seed=n))) for n in (159, 1, 320, 100, 59, 1)] == [0, 1, 2, 0, 0, 1]
    assert len(stream.finish()) == 0


def test_the_state_does_not_grow_and_the_caller_may_reuse_his_buffer() -> None:
    wave, stream, buffer = noise(16_000, seed=0), StreamingLogMel(), torch.empty(500)
    parts = []
    for part in wave.split(500):
        buffer[: len(part)] = part
        parts.append(stream.push(buffer[: len(part)]))
        assert stream._pending is not None and len(stream._pending) < 400 + 160
    buffer.fill_(7.0)
    found, expected = torch.cat([*parts, stream.finish()]), log_mel(wave)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_reset_starts_anew_and_numpy_is_taken() -> None:
    wave = noise(1_000, seed=1)
    stream = StreamingLogMel()
    stream.push(noise(333, seed=2))
    stream.reset()
    found = torch.cat([stream.push(np.asarray(wave)), stream.finish()])
    torch.testing.assert_close(found, log_mel(wave), rtol=1e-4, atol=1e-3)


def test_what_a_stream_cannot_do_is_one_line() -> None:
    with pytest.raises(ValueError, match="neither its end nor its maximum"):
        StreamingLogMel(log="whisper")
    with pytest.raises(ValueError, match="expected 'causal' and 'ln'"):
        StreamingLogMel(padding="reflect")
    with pytest.raises(ValueError, match="hop_length"):
        StreamingLogMel(hop_length=500)
    stream = StreamingLogMel()
    stream.push(noise(100, seed=0))
    with pytest.raises(ValueError, match=r"expected torch.float32 as before, got torch.int16"):
        stream.push(torch.zeros(5, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"chunk: expected \(n_samples,\)"):
        stream.push(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="not finite"):
        stream.push(torch.full((400,), float("nan")))
    stream.finish()
    with pytest.raises(ValueError, match="is finished"):
        stream.push(torch.zeros(5))


def test_a_sample_that_is_not_finite_is_refused_and_not_kept() -> None:
    wave = noise(1_000, 0)
    stream = StreamingLogMel()
    first = stream.push(wave[:500])
    with pytest.raises(ValueError, match="not finite"):
        stream.push(torch.tensor([0.0, float("nan")]))
    rest = stream.push(wave[500:])
    assert torch.equal(torch.cat([first, rest, stream.finish()]), log_mel(wave))


def test_chunks_of_received_bytes_and_chunks_with_a_gradient_are_taken() -> None:
    samples = (noise(800, 0) * 8_000).short()
    received = np.frombuffer(samples.numpy().tobytes(), np.int16)
    assert torch.equal(StreamingLogMel().push(received), log_mel(samples))
    tracked = StreamingLogMel()
    assert not tracked.push(noise(800, 0).requires_grad_()).requires_grad
