"""mel_downsample of bfloat16 and float16 in C++: torch's own conversions and the reference are the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from muomni_kernels import cpp, mel_downsample, use_backend

native = cpp.extension()
pytestmark = pytest.mark.skipif(native is None, reason=cpp.available() or "")
HALVES = [torch.bfloat16, torch.float16]
MODES = ["stack", "mean", "max"]
ONE = np.array([0, 1])


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    """(1, 65536): all numbers of a half type, with its infinities and NaN."""
    return torch.arange(-32_768, 32_768, dtype=torch.int32).short().view(dtype)[None]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same bits, but for those of a NaN."""
    assert found.dtype == expected.dtype
    assert torch.equal(found.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(found[numbers].view(torch.int16), expected[numbers].view(torch.int16))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_every_number_survives_a_group_of_one(dtype: torch.dtype, mode: str) -> None:
    numbers = every_pattern(dtype)
    with use_backend("mel_downsample", "cpp"):
        assert_same(mel_downsample(numbers, factor=1, mode=mode), numbers)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_mean_of_two_rounds_as_torch_converts(dtype: torch.dtype) -> None:
    numbers = every_pattern(dtype)
    shift = torch.randint(65_536, (3,), generator=torch.Generator().manual_seed(3)).tolist()
    # A neighbour and a number make a value half way between two; others any rounding, overflow and subnormals.
    for by in (1, *shift):
        pair = torch.cat((numbers, numbers.roll(by, 1)))
        with use_backend("mel_downsample", "cpp"):
            found = mel_downsample(pair, factor=2, mode="mean")
        wide = pair.float()
        assert_same(found, ((wide[:1] + wide[1:]) / 2).to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=6).filter(
        any
    ),  # of no frames the reference has no gradient
    factor=st.integers(1, 16),
    width=st.integers(1, 37),
    spare=st.integers(0, 3),
)
def test_rows_and_gradients_equal_the_reference(
    dtype: torch.dtype, mode: str, lengths: list[int], factor: int, width: int, spare: int
) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    # Few different numbers, so that a maximum has ties.
    frames = (torch.randn(sum(lengths), width, generator=generator) * 4).round().div(3).to(dtype)
    cu = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)
    n_rows = sum(-(-n // factor) for n in lengths) + spare
    rows, gradients = [], []
    for backend in ("cpp", "reference"):
        x = frames.clone().requires_grad_()
        with use_backend("mel_downsample", backend):
            y = mel_downsample(x, factor=factor, mode=mode, cu_frames=cu, n_rows=n_rows)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        rows.append(y.detach())
        gradients.append(torch.autograd.grad(y, x, weights)[0])
    assert rows[0].dtype == gradients[0].dtype == dtype
    # The order of a mean's additions may move it over one rounding.
    tolerance = torch.finfo(dtype).eps if mode == "mean" else 0.0
    torch.testing.assert_close(rows[0], rows[1], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_max_takes_the_first_nan(dtype: torch.dtype) -> None:
    frames = torch.tensor([[1.0, 2.0], [1.0, float("nan")], [0.0, 5.0]], dtype=dtype, requires_grad=True)
    with use_backend("mel_downsample", "cpp"):
        found = mel_downsample(frames, factor=3, mode="max")
    (gradient,) = torch.autograd.grad(found.sum(), frames)
    assert found[0, 0] == 1.0
    assert found[0, 1].isnan()
    assert gradient.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_the_extension_refuses_a_dtype_its_arrays_cannot_hold() -> None:
    for storage, dtype in ((np.uint16, "float32"), (np.uint16, "float8"), (np.float32, "bfloat16")):
        frames, out = np.zeros((1, 3), storage), np.zeros((1, 3), storage)
        with pytest.raises(ValueError, match="dtype: expected"):
            native.downsample(frames, ONE, ONE, 1, "mean", out, dtype=dtype)
        with pytest.raises(ValueError, match="dtype: expected"):
            native.downsample_backward(out, frames, ONE, ONE, 1, "mean", frames, dtype=dtype)
    with pytest.raises(TypeError):
        native.downsample(np.zeros((1, 3), np.uint16), ONE, ONE, 1, "mean", np.zeros((1, 3), np.float32))
