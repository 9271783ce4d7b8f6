"""Stacks of overlapping windows and padded batches on a CPU: every backend against windows cut frame by frame."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from muomni_kernels import cpp, mel_downsample, use_backend

native = cpp.extension()
BACKENDS = ["cpp", "reference"] if native else ["reference"]
LOW_FRAME_RATE: dict[str, Any] = {"factor": 6, "window": 7, "lead": 3, "edge": "repeat"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)


def by_hand(
    frames: torch.Tensor, lengths: list[int], factor: int, window: int, lead: int, edge: str
) -> torch.Tensor:
    """Each row from the numbers of the frames it shows, clip by clip."""
    rows = []
    for start, stop in pairwise(offsets(lengths).tolist()):
        for first in range(start, stop, factor):
            shown = [first - lead + i for i in range(window)]
            if edge == "repeat":
                row = [frames[min(max(at, start), stop - 1)] for at in shown]
            else:
                row = [frames[at] if start <= at < stop else torch.zeros_like(frames[0]) for at in shown]
            rows.append(torch.cat(row))
    return torch.stack(rows) if rows else frames.new_zeros(0, window * frames.shape[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_low_frame_rate_as_funasr_has_it(backend: str) -> None:
    # 7 frames every 6, three copies of the first in front, copies of the last behind; ceil(T / 6) rows.
    expected = {
        1: [[0, 0, 0, 0, 0, 0, 0]],
        4: [[0, 0, 0, 0, 1, 2, 3]],
        7: [[0, 0, 0, 0, 1, 2, 3], [3, 4, 5, 6, 6, 6, 6]],
        10: [[0, 0, 0, 0, 1, 2, 3], [3, 4, 5, 6, 7, 8, 9]],
        14: [[0, 0, 0, 0, 1, 2, 3], [3, 4, 5, 6, 7, 8, 9], [9, 10, 11, 12, 13, 13, 13]],
    }
    for n, rows in expected.items():
        # The second column tells that a frame's columns stay together.
        frames = torch.stack((torch.arange(n), torch.arange(n) + 100), 1).float()
        with use_backend("mel_downsample", backend):
            found = mel_downsample(frames, **LOW_FRAME_RATE)
        assert found.shape == (len(rows), 14)
        assert found[:, ::2].tolist() == rows
        assert (found[:, 1::2] == found[:, ::2] + 100).all()


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 25), max_size=5),
    factor=st.integers(1, 9),
    window=st.integers(1, 20),
    lead=st.integers(0, 19),
    edge=st.sampled_from(["zeros", "repeat"]),
    spare=st.integers(0, 2),
    dtype=st.sampled_from(DTYPES),
)
def test_rows_and_gradients_of_any_window(
    backend: str, lengths: list[int], factor: int, window: int, lead: int, edge: str, spare: int, dtype: torch.dtype
) -> None:  # fmt: skip
    lead = min(lead, window - 1)
    generator = torch.Generator().manual_seed(sum(lengths))
    # Frames behind the clips are of none of them.
    frames = torch.randn(sum(lengths) + spare, 3, generator=generator).to(dtype)
    exact = frames.double().requires_grad_()
    expected = by_hand(exact, lengths, factor, window, lead, edge)
    n_rows = len(expected) + spare
    dy = torch.randn(n_rows, 3 * window, generator=generator).to(dtype)
    x = frames.clone().requires_grad_()
    with use_backend("mel_downsample", backend):
        found = mel_downsample(
            x, factor=factor, window=window, lead=lead, edge=edge, cu_frames=offsets(lengths), n_rows=n_rows
        )
        assert found.dtype == dtype
        assert torch.equal(found[: len(expected)], expected.to(dtype))
        assert not found[len(expected) :].any()
        (gradient,) = torch.autograd.grad(found, x, dy)
    if expected.requires_grad:
        (wanted,) = torch.autograd.grad(expected, exact, dy[: len(expected)].double())
    else:
        wanted = torch.zeros_like(exact)
    # One rounding at the end, whatever the dtype; sums of numbers of both signs in fp32.
    error = (gradient.double() - wanted).abs()
    assert (error <= torch.finfo(dtype).eps * wanted.abs() + 1e-5).all()


@pytest.mark.skipif(native is None, reason=cpp.available() or "")
def test_gradients_of_shared_frames_have_the_same_bits_each_time() -> None:
    x = torch.randn(1_000, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = mel_downsample(x, **LOW_FRAME_RATE)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    first, *others = (torch.autograd.grad(y, x, dy, retain_graph=True)[0] for _ in range(5))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("edge", ["zeros", "repeat"])
@pytest.mark.parametrize(("factor", "window", "lead"), [(6, 7, 3), (2, 7, 6), (4, 1, 0), (3, 3, 2)])
def test_gradcheck_of_the_reference(factor: int, window: int, lead: int, edge: str) -> None:
    x = torch.randn(11, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    cu = offsets([7, 0, 4])
    with use_backend("mel_downsample", "reference"):
        assert torch.autograd.gradcheck(
            lambda t: mel_downsample(t, factor=factor, window=window, lead=lead, edge=edge, cu_frames=cu),
            (x,),
        )


def test_a_window_of_one_picks_and_the_group_itself_is_the_default() -> None:
    x = torch.randn(19, 3, generator=torch.Generator().manual_seed(0))
    for backend in BACKENDS:
        with use_backend("mel_downsample", backend):
            assert torch.equal(mel_downsample(x, factor=4, window=1), x[::4])
            assert torch.equal(mel_downsample(x, factor=4, window=4), mel_downsample(x, factor=4))
            assert torch.equal(
                mel_downsample(x, factor=4, window=3, lead=2)[1:], x[2:17].unfold(0, 3, 4).mT.flatten(1)
            )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "stack"}, {"mode": "mean"}, {"mode": "max"}, LOW_FRAME_RATE,
        {"factor": 2, "window": 5, "lead": 4}, {"factor": 20, "mode": "mean"},
    ],
    ids=str,
)  # fmt: skip
def test_a_padded_batch_equals_its_clips_and_padding_leaks_nowhere(backend: str, options: dict) -> None:
    lengths, n_frames, width = [13, 0, 17, 1, 8], 17, 5
    factor = options.get("factor", 8)
    padded = torch.full((len(lengths), n_frames, width), float("nan"))
    clips = [torch.randn(n, width, generator=torch.Generator().manual_seed(n)) for n in lengths]
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    padded.requires_grad_()
    with use_backend("mel_downsample", backend):
        found = mel_downsample(padded, lengths=torch.tensor(lengths), **options)
        (gradient,) = torch.autograd.grad(found.square().sum(), padded)
        assert found.shape[:2] == (len(lengths), -(-n_frames // factor))
        for rows, d_clip, clip in zip(found, gradient, clips, strict=True):
            leaf = clip.requires_grad_()
            alone = mel_downsample(leaf, **options)
            assert torch.equal(rows[: len(alone)], alone)
            assert not rows[len(alone) :].any()
            assert not d_clip[len(clip) :].any()
            assert torch.equal(d_clip[: len(clip)], torch.autograd.grad(alone.square().sum(), leaf)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_without_lengths_is_whole_clips(backend: str) -> None:
    batch = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0))
    with use_backend("mel_downsample", backend):
        for frames in (batch, batch.mT.contiguous().mT):
            found = mel_downsample(frames, **LOW_FRAME_RATE)
            assert torch.equal(found, torch.stack([mel_downsample(clip, **LOW_FRAME_RATE) for clip in batch]))
        assert torch.equal(found, mel_downsample(batch, lengths=np.array([10, 10, 10]), **LOW_FRAME_RATE))
        assert mel_downsample(batch[:0]).shape == (0, 2, 32)
        assert mel_downsample(batch[:, :0], lengths=torch.tensor([0, 0, 0])).shape == (3, 0, 32)
        assert mel_downsample(batch, mode="mean").shape == (3, 2, 4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"window": 0}, "window, lead, edge: expected"),
        ({"window": 65_537}, "window, lead, edge: expected"),
        ({"window": 3, "lead": 3}, "0 to window - 1"),
        ({"lead": -1}, "0 to window - 1"),
        ({"edge": "reflect"}, "zeros or repeat"),
        ({"mode": "mean", "window": 3}, "only 'stack' has windows"),
        ({"mode": "max", "lead": 1}, "only 'stack' has windows"),
        ({"mode": "mean", "edge": "repeat"}, "only 'stack' has windows"),
        ({"lengths": torch.tensor([4])}, "lengths: expected a padded batch"),
        ({"n_rows": 0}, "n_rows: expected at least 1 for 4 frames"),
        ({"frames": torch.zeros(2, 4, 3), "cu_frames": torch.tensor([0, 4])}, "neither for a padded batch"),
        ({"frames": torch.zeros(2, 4, 3), "n_rows": 2}, "neither for a padded batch"),
        ({"frames": torch.zeros(2, 4, 3), "lengths": torch.tensor([4])}, r"lengths: expected \(2,\) int32"),
        ({"frames": torch.zeros(2, 4, 3), "lengths": torch.tensor([4.0, 1.0])}, r"\(2,\) torch.float32"),
        ({"frames": torch.zeros(2, 4, 3), "lengths": torch.tensor([4, 5])}, "lengths: expected 0 to 4"),
        ({"frames": torch.zeros(2, 4, 3), "lengths": torch.tensor([-1, 4])}, "lengths: expected 0 to 4"),
        ({"frames": torch.zeros(1, 2, 4, 3)}, r"\(n, width\) or \(B, T, width\)"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_named(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        mel_downsample(**{"frames": torch.zeros(4, 3), **changes})


@pytest.mark.skipif(native is None, reason=cpp.available() or "")
@pytest.mark.parametrize(
    "changes",
    [
        {"clips": np.array([0, 9, 8, 9])},
        {"clips": np.array([-1, 4, 4, 9])},
        {"clips": np.array([0, 4, 4, 10])},
        {"clips": np.array([0, 9])},
        {"clips": np.array([[0, 4], [4, 9]])},
        {"clips": np.array([0, -(2**63), 2**62, 9])},
        {"cu_rows": np.array([0, 1, 2])},
        {"cu_rows": np.array([1, 2, 4])},
        {"cu_rows": np.array([0, 2, 9])},
        {"cu_rows": np.array([0, 2, -(2**63)])},
        {"window": 4},
        {"window": 2**62},
        {"lead": 5},
        {"lead": -1},
        {"mode": "mean"},
    ],
    ids=str,
)
def test_the_extension_itself_refuses_what_would_leave_its_arrays(changes: dict[str, Any]) -> None:
    def run(**changes: Any) -> None:
        values: dict[str, Any] = {
            "frames": np.zeros((9, 3), np.float32), "clips": np.array([0, 4, 4, 9]), "cu_rows": np.array([0, 1, 3]),
            "factor": 4, "mode": "stack", "out": np.zeros((4, 15), np.float32), "window": 5, "lead": 1, "repeat": True,
        } | changes  # fmt: skip
        fine, coarse, rest = (
            values.pop("frames"),
            values.pop("out"),
            [values.pop("clips"), values.pop("cu_rows")],
        )
        groups = [values.pop("factor"), values.pop("mode")]
        for call, first, last in (
            (native.downsample, [fine], coarse),
            (native.downsample_backward, [coarse, fine], fine),
        ):
            call(*first, *rest, *groups, last, **values)

    run()
    with pytest.raises(ValueError):
        run(**changes)
