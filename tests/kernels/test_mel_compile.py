"""The front end's C++ operators under torch.compile and in a DataLoader's workers: the same bits as eager."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from muomni_kernels import cpp, log_mel, log_mel_downsample, mel_downsample, use_backend
from torch.library import opcheck

pytestmark = pytest.mark.skipif(cpp.extension() is None, reason=cpp.available() or "")
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
WAVES = {"one clip": (3_217,), "batch": (3, 1_601)}
SETTINGS = (16_000, 400, 400, 160, 20, 0.0, 8_000.0, "slaney", "causal", "ln", 1e-7, 1)
CU_SAMPLES = torch.tensor([0, 1_000, 1_000, 3_217])
LOW_FRAME_RATE: dict[str, Any] = {"factor": 6, "window": 7, "lead": 3, "edge": "repeat"}
Op = Callable[..., torch.Tensor]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * 0.1


def whole(function: Op) -> Op:
    """function as one graph; a break raises."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("shape", WAVES.values(), ids=WAVES)
@pytest.mark.parametrize(
    ("op", "options"),
    [
        (log_mel, {"n_fft": 512, "padding": "reflect", "log": "whisper"}),
        (log_mel_downsample, {"mode": "mean", "dtype": torch.bfloat16}),
    ],
    ids=["whisper", "mean"],
)
def test_waveforms_compiled_without_a_break_equal_eager(
    op: Op, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    compiled = whole(lambda wave: op(wave, **options) * 2)
    # The second length makes the size dynamic.
    for n in (shape[-1], shape[-1] - 333, shape[-1] - 700):
        wave = noise(*shape)[..., :n]
        assert torch.equal(compiled(wave), op(wave, **options) * 2)
    samples = (wave * 9_000).short()
    assert torch.equal(compiled(samples), op(samples, **options) * 2)


@pytest.mark.parametrize("op", [log_mel, log_mel_downsample])
def test_ragged_waveforms_compile_where_unknown_sizes_are_allowed(op: Op) -> None:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = whole(lambda wave, cu: op(wave, cu_samples=cu, n_mels=20) * 2)
        for cu in (CU_SAMPLES, CU_SAMPLES.clamp(max=2_000)):
            wave = noise(int(cu[-1]))
            assert torch.equal(compiled(wave, cu), op(wave, cu_samples=cu, n_mels=20) * 2)


def test_a_graph_names_what_is_wrong_when_it_runs() -> None:
    wave = noise(800)
    wave[17] = float("nan")
    with pytest.raises(ValueError, match="clip 0 holds a sample that is not finite"):
        whole(log_mel)(wave)
    with pytest.raises(ValueError, match="n_fft: expected an even number"):
        whole(lambda wave: log_mel(wave, n_fft=401))(wave)
    for wrong in ([0, 40, 30], [0, 8, 36]):
        with pytest.raises(ValueError, match="cu_frames: falls or leaves"):
            whole(lambda x, cu: mel_downsample(x, cu_frames=cu, n_rows=9))(noise(35, 4), torch.tensor(wrong))


def test_a_waveform_that_needs_a_gradient_is_left_to_eager() -> None:
    wave = noise(800).requires_grad_()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        whole(log_mel)(wave)
    with torch.no_grad():
        assert torch.equal(whole(log_mel)(wave), log_mel(wave))


LAYOUTS = {
    "one": ([noise(35, 4)], {"mode": "mean"}),
    "ragged": ([noise(35, 4), torch.tensor([0, 1, 9, 28, 28, 33], dtype=torch.int32)], {"mode": "max"}),
    "padded": ([noise(3, 11, 4), torch.tensor([11, 0, 7])], {"mode": "stack"}),
    "padded windows": ([noise(3, 11, 4), torch.tensor([11, 0, 7])], LOW_FRAME_RATE),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_downsampling_and_its_gradient_compiled_equal_eager(layout: str) -> None:
    (frames, *clips), options = LAYOUTS[layout]

    def rows(frames: torch.Tensor, *clips: torch.Tensor) -> torch.Tensor:
        if layout == "one":
            return mel_downsample(frames, **options) * 2
        if layout == "ragged":
            return mel_downsample(frames, cu_frames=clips[0], n_rows=9, **options) * 2
        return mel_downsample(frames, lengths=clips[0], **options) * 2

    leaf = frames.clone().requires_grad_()
    with use_backend("mel_downsample", "cpp"):
        pairs = [
            (y := f(leaf, *clips), *torch.autograd.grad(y.square().sum(), leaf)) for f in (whole(rows), rows)
        ]
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "groups", [("max", 8, 0, "zeros"), ("mean", 8, 0, "zeros"), ("stack", 9, 4, "repeat")], ids=str
)
def test_downsampling_operators_are_sound(groups: tuple[str, int, int, str], dtype: torch.dtype) -> None:
    mode, *window = groups
    x = noise(35, 4).to(dtype)
    rest = (torch.tensor([0, 1, 9, 28, 28, 35]), torch.tensor([0, 1, 2, 5, 5, 6]), 8, mode)
    namespace = torch.ops.muomni
    opcheck(namespace.mel_downsample_forward.default, (x, *rest, 7, *window, "cpp"), test_utils=CHECKS)
    dy = noise(7, 4 * window[0] if mode == "stack" else 4).to(dtype)
    opcheck(namespace.mel_downsample_backward.default, (dy, x, *rest, 35, *window, "cpp"), test_utils=CHECKS)


@pytest.mark.parametrize("cu", [None, CU_SAMPLES], ids=["one clip", "ragged"])
def test_waveform_operators_are_sound(cu: torch.Tensor | None) -> None:
    wave, namespace = noise(3_217), torch.ops.muomni
    opcheck(namespace.log_mel.default, (wave, cu, *SETTINGS), test_utils=CHECKS)
    opcheck(
        namespace.log_mel_downsample.default,
        (wave, cu, 8, "max", torch.bfloat16, *SETTINGS),
        test_utils=CHECKS,
    )


class Clips(torch.utils.data.Dataset[torch.Tensor]):
    """Rows of clips, made where they are asked for."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        frames = log_mel(noise(1_600 * (index + 1)), n_mels=20)
        return torch.cat((mel_downsample(frames), log_mel_downsample(noise(1_600 * (index + 1)), n_mels=20)))


def test_forked_workers_give_what_the_parent_gives() -> None:
    clips = Clips()
    expected = [clips[i] for i in range(4)]
    loader = torch.utils.data.DataLoader(
        clips, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))
