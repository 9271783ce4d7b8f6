"""mel_downsample in Triton, in the interpreter or on a GPU, against groups cut by hand in fp64."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from muomni_kernels import downsample, mel_downsample, use_backend
from torch.library import opcheck

Randn = Callable[..., torch.Tensor]
Close = Callable[..., None]
MODES = ["stack", "mean", "max"]
CLIPS = {
    "ragged": [1, 8, 19, 0, 7],
    "empty first and last": [0, 3, 16, 0, 0],
    "none": [],
    "no frames": [0, 0],
}


def offsets(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def by_hand(frames: torch.Tensor, cu: torch.Tensor, factor: int, mode: str, n_rows: int) -> torch.Tensor:
    """Groups of each clip one after another, then zero rows."""
    width, rows = frames.shape[1], []
    for start, stop in pairwise(cu.tolist()):
        for at in range(start, stop, factor):
            group = frames[at : min(at + factor, stop)]
            if mode == "stack":
                rows.append(torch.cat((group.flatten(), group.new_zeros((factor - len(group)) * width))))
            else:
                rows.append(group.mean(0) if mode == "mean" else group.max(0).values)
    empty = frames.new_zeros(n_rows - len(rows), width * (factor if mode == "stack" else 1))
    return torch.cat([torch.stack(rows), empty]) if rows else empty


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("factor", "width"), [(1, 5), (3, 130), (8, 16), (16, 7)])
@pytest.mark.parametrize("clips", CLIPS)
def test_rows_and_gradients(
    clips: str, factor: int, width: int, mode: str, dtype: torch.dtype, randn: Randn, close: Close
) -> None:
    lengths = CLIPS[clips]
    # Two frames more than the clips have, two rows more than they need.
    frames = randn(sum(lengths) + 2, width, seed=0, dtype=dtype)
    cu = offsets(lengths, frames.device)
    n_rows = sum(-(-n // factor) for n in lengths) + 2
    results = []
    for wide, backend in ((torch.float64, None), (dtype, "reference"), (dtype, "triton")):
        leaf = frames.to(wide).requires_grad_()
        if backend is None:
            y = by_hand(leaf, cu, factor, mode, n_rows)
        else:
            with use_backend("mel_downsample", backend):
                y = mel_downsample(leaf, factor=factor, mode=mode, cu_frames=cu, n_rows=n_rows)
        dy = randn(*y.shape, seed=3, dtype=torch.float32).to(dtype)
        grads = torch.autograd.grad(y, leaf, dy.to(wide)) if y.requires_grad else (torch.zeros_like(leaf),)
        results.append((y, *grads))
    for expected, plain, found in zip(*results, strict=True):
        close(found, expected, plain)


def windows_by_hand(
    frames: torch.Tensor, cu: torch.Tensor, factor: int, window: int, lead: int, edge: str, n_rows: int
) -> torch.Tensor:
    """The frames each row of "stack" shows, clip by clip, then zero rows."""
    zero, rows = torch.zeros_like(frames[0]), []
    for start, stop in pairwise(cu.tolist()):
        for first in range(start, stop, factor):
            shown = range(first - lead, first - lead + window)
            if edge == "repeat":
                rows.append(torch.cat([frames[min(max(at, start), stop - 1)] for at in shown]))
            else:
                rows.append(torch.cat([frames[at] if start <= at < stop else zero for at in shown]))
    return torch.stack([*rows, *[zero.repeat(window)] * (n_rows - len(rows))])


# The low frame rate; windows over several groups at both ends; frames that no window shows; a whole group repeated.
WINDOWS = [(6, 7, 3), (2, 9, 5), (3, 11, 0), (2, 8, 7), (5, 2, 1), (4, 4, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("edge", ["zeros", "repeat"])
@pytest.mark.parametrize(("factor", "window", "lead"), WINDOWS)
def test_windows(
    factor: int, window: int, lead: int, edge: str, dtype: torch.dtype, randn: Randn, close: Close
) -> None:
    lengths = [1, 8, 19, 0, 7]
    frames = randn(sum(lengths) + 2, 17, seed=0, dtype=dtype)
    cu = offsets(lengths, frames.device)
    n_rows = sum(-(-n // factor) for n in lengths) + 2
    options = {"factor": factor, "window": window, "lead": lead, "edge": edge}
    results = []
    for wide, backend in ((torch.float64, None), (dtype, "reference"), (dtype, "triton")):
        leaf = frames.to(wide).requires_grad_()
        if backend is None:
            y = windows_by_hand(leaf, cu, factor, window, lead, edge, n_rows)
        else:
            with use_backend("mel_downsample", backend):
                y = mel_downsample(leaf, cu_frames=cu, n_rows=n_rows, **options)
        dy = randn(*y.shape, seed=3, dtype=torch.float32).to(dtype)
        results.append((y, *torch.autograd.grad(y, leaf, dy.to(wide))))
    for expected, plain, found in zip(*results, strict=True):
        close(found, expected, plain)


@pytest.mark.parametrize("edge", ["zeros", "repeat"])
def test_windows_of_rows_that_do_not_fit_are_left_out(edge: str, randn: Randn) -> None:
    # The last row that fits shows frames of two groups behind it.
    x = randn(40, 8, seed=0, dtype=torch.float32).requires_grad_()
    cu = offsets([16, 24], x.device)
    rest = (cu, offsets([4, 6], x.device), 4, "stack", 6, 11, 2, edge)
    y = downsample.MelDownsample.apply(x, *rest, "triton")
    expected = windows_by_hand(x, cu, 4, 11, 2, edge, 10)[:6]
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    dy = randn(*y.shape, seed=1, dtype=torch.float32)
    for found, wanted in zip(
        torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, x, dy), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "options",
    [*({"mode": mode} for mode in MODES), {"factor": 6, "window": 7, "lead": 3, "edge": "repeat"}],
    ids=str,
)
def test_padding_of_a_batch_leaks_nowhere(options: dict, randn: Randn) -> None:
    lengths = [13, 0, 17, 8]
    clips = [randn(n, 16, seed=n, dtype=torch.float32).requires_grad_() for n in lengths]
    padded = torch.full((4, 17, 16), float("nan"), device=clips[0].device)
    with torch.no_grad():
        for row, clip in zip(padded, clips, strict=True):
            row[: len(clip)] = clip
    padded.requires_grad_()
    with use_backend("mel_downsample", "triton"):
        found = mel_downsample(padded, lengths=torch.tensor(lengths, device=padded.device), **options)
        (gradient,) = torch.autograd.grad(found.square().sum(), padded)
        for rows, d_clip, clip in zip(found, gradient, clips, strict=True):
            alone = mel_downsample(clip, **options)
            assert torch.equal(rows[: len(alone)], alone) and not rows[len(alone) :].any()
            (d_alone,) = torch.autograd.grad(alone.square().sum(), clip)
            assert torch.equal(d_clip[: len(clip)], d_alone) and not d_clip[len(clip) :].any()


@pytest.mark.parametrize("mode", MODES)
def test_one_clip_without_offsets_and_strided_input(mode: str, randn: Randn) -> None:
    x = randn(38, 24, seed=0, dtype=torch.float32)[::2, 4:20].requires_grad_()
    with use_backend("mel_downsample", "triton"):
        y = mel_downsample(x, mode=mode)
        (d,) = torch.autograd.grad(y.sum(), x)
    cu = offsets([19], x.device)
    expected = by_hand(x, cu, 8, mode, 3)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(d, torch.autograd.grad(expected.sum(), x)[0])


def test_max_gives_its_gradient_to_the_first_frame_that_holds_it(randn: Randn) -> None:
    x = (
        torch.tensor([[1.0], [3.0], [3.0], [2.0], [5.0]])
        .to(randn(1, seed=0, dtype=torch.float32))
        .requires_grad_()
    )
    with use_backend("mel_downsample", "triton"):
        mel_downsample(x, factor=4, mode="max").sum().backward()
    assert x.grad is not None and x.grad[:, 0].tolist() == [0, 1, 0, 0, 1]


def test_rows_that_do_not_fit_are_left_out(randn: Randn) -> None:
    x = randn(32, 8, seed=0, dtype=torch.float32).requires_grad_()
    cu = offsets([16, 16], x.device)
    arguments = (x, cu, torch.tensor([0, 2, 4], device=x.device), 8, "mean", 3, 8, 0, "zeros", "triton")
    y = downsample.MelDownsample.apply(*arguments)
    torch.testing.assert_close(y, x.view(4, 8, 8).mean(1)[:3])
    y.sum().backward()
    assert x.grad is not None and not x.grad[24:].any() and (x.grad[:24] == 0.125).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrong", [[0, 16, 40], [-8, 16, 20]])
def test_offsets_that_are_wrong_touch_nothing_outside_the_frames(
    wrong: list[int], mode: str, randn: Randn
) -> None:
    # The frames lie inside a larger buffer of NaN; 20 of them are there.
    buffer = torch.full((60, 8), float("nan"), device=randn(1, seed=0, dtype=torch.float32).device)
    buffer[20:40] = randn(20, 8, seed=0, dtype=torch.float32)
    frames, cu = buffer[20:40], torch.tensor(wrong, dtype=torch.int32, device=buffer.device)
    cu_rows = torch.tensor([0, 2, 5], dtype=torch.int32, device=buffer.device)
    y = downsample.mel_downsample_forward(frames, cu, cu_rows, 8, mode, 5, 8, 0, "zeros", "triton")
    assert torch.isfinite(y).all()
    d = downsample.mel_downsample_backward(
        torch.ones_like(y), frames, cu, cu_rows, 8, mode, 20, 8, 0, "zeros", "triton"
    )
    assert d.shape == (20, 8) and torch.isfinite(d).all()
    if mode == "stack":
        for edge in ("zeros", "repeat"):
            rest = (cu, cu_rows, 8, mode)
            y = downsample.mel_downsample_forward(frames, *rest, 5, 20, 9, edge, "triton")
            d = downsample.mel_downsample_backward(
                torch.ones_like(y), frames, *rest, 20, 20, 9, edge, "triton"
            )
            assert torch.isfinite(y).all() and torch.isfinite(d).all()


@pytest.mark.parametrize("mode", MODES)
def test_compiled_without_a_break_equals_eager(mode: str, randn: Randn) -> None:
    x = randn(35, 8, seed=0, dtype=torch.float32).requires_grad_()
    cu = offsets([1, 8, 19, 0, 7], x.device)

    def rows(frames: torch.Tensor, cu_frames: torch.Tensor) -> torch.Tensor:
        return mel_downsample(frames, mode=mode, cu_frames=cu_frames, n_rows=9) * 2

    with use_backend("mel_downsample", "triton"):
        compiled = torch.compile(rows, fullgraph=True, backend="aot_eager")
        pairs = [(y := f(x, cu), *torch.autograd.grad(y.square().sum(), x)) for f in (compiled, rows)]
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


@pytest.mark.parametrize(
    ("mode", "window"), [*((mode, (8, 0, "zeros")) for mode in MODES), ("stack", (9, 4, "repeat"))]
)
def test_operators_are_sound(mode: str, window: tuple[int, int, str], randn: Randn) -> None:
    x = randn(35, 8, seed=0, dtype=torch.float32)
    rest = (offsets([1, 8, 19, 0, 7], x.device), offsets([1, 1, 3, 0, 1], x.device), 8, mode)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(
        torch.ops.muomni.mel_downsample_forward.default, (x, *rest, 7, *window, "triton"), test_utils=checks
    )
    dy = randn(7, 8 * window[0] if mode == "stack" else 8, seed=1, dtype=torch.float32)
    opcheck(
        torch.ops.muomni.mel_downsample_backward.default,
        (dy, x, *rest, 35, *window, "triton"),
        test_utils=checks,
    )
