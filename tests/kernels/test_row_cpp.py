"""The row-wise ops in C++: every instruction set against fp64, threads, layouts, what is not finite, and modes."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from muomni_kernels import (
    add_rms_norm,
    cpp,
    qk_norm_rope,
    reference,
    registry,
    rms_norm,
    rope,
    swiglu,
    use_backend,
)
from torch.utils._python_dispatch import TorchDispatchMode

native = cpp.extension()
pytestmark = pytest.mark.skipif(native is None, reason=cpp.available() or "")
LEVELS = native.simd_levels() if native else []
F32, BF16 = torch.float32, torch.bfloat16
Randn = Callable[..., torch.Tensor]
Op = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


def calls(
    randn: Randn, dtype: torch.dtype, rows: int, width: int
) -> dict[str, tuple[Op, list[torch.Tensor], int]]:
    """Each op with its inputs and how many of them get a gradient; fp32 weights and residuals, as under autocast."""
    half = width // 2
    angles = randn(rows, half, seed=3, dtype=F32)
    x, weight = randn(rows, width, seed=0, dtype=dtype), randn(width, seed=1, dtype=F32)
    qkv = randn(rows, 5 * width, seed=2, dtype=dtype)

    def packed(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return qk_norm_rope(*leaves, angles.cos(), angles.sin(), n_heads=3, n_kv_heads=1)

    return {
        "rms_norm": (rms_norm, [x, weight], 2),
        "add_rms_norm": (add_rms_norm, [x, randn(rows, width, seed=4, dtype=F32), weight], 3),
        "rope": (lambda t: rope(t, angles.cos(), angles.sin()), [qkv.view(rows, 5, width)], 1),
        "qk_norm_rope": (packed, [qkv, weight, weight * 2], 3),
        "swiglu": (swiglu, [randn(rows, 2 * width, seed=5, dtype=dtype) * 8], 1),
    }


OPS = ["rms_norm", "add_rms_norm", "rope", "qk_norm_rope", "swiglu"]


def results(op: Op, inputs: list[torch.Tensor], n_grads: int, *, seed: int = 99) -> list[torch.Tensor]:
    """Outputs and gradients."""
    leaves = [t.detach().requires_grad_(i < n_grads) for i, t in enumerate(inputs)]
    out = op(*leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(y.shape, generator=generator).to(BF16).to(y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves[:n_grads], grads)]


@pytest.fixture
def forced():
    with use_backend(None, "cpp"):
        yield


def test_the_cases_of_the_other_kernels_hold_in_cpp() -> None:
    cases = Path(__file__).with_name("cases_rowwise.py")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", str(cases)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MUOMNI_CASES": "cpp", "CUDA_VISIBLE_DEVICES": ""}
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cases.parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= 100


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", OPS)
# Below, at and beside the widths of registers; many rows, whose weights' gradients are added up in blocks.
@pytest.mark.parametrize(("rows", "width"), [(3, 2), (5, 26), (2, 64), (300, 96)])
def test_every_level_is_as_near_to_fp64_as_plain_pytorch(
    name: str, level: str, dtype: torch.dtype, rows: int, width: int,
    randn: Randn, close: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(cpp.SIMD_ENVIRONMENT, level)
    op, inputs, n_grads = calls(randn, dtype, rows, width)[name]
    with use_backend(None, "reference"):
        exact = results(op, [t.double() for t in inputs], n_grads)
        plain = results(op, inputs, n_grads)
    with use_backend(None, "cpp"):
        found = results(op, inputs, n_grads)
    for one in zip(found, exact, plain, strict=True):
        close(*one)


@pytest.mark.parametrize("level", LEVELS)
def test_silu_is_right_to_four_roundings_and_saturates(
    level: str, forced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpp.SIMD_ENVIRONMENT, level)
    gate = torch.cat((torch.linspace(-87, 87, 100_003), torch.linspace(-1e-3, 1e-3, 1_001)))
    exact = gate.double() * torch.sigmoid(gate.double())
    found = swiglu(torch.cat((gate, torch.ones_like(gate)))).double()
    assert ((found - exact).abs() / exact.abs().clamp_min(1e-37)).max() < 4 * 2**-24
    extreme = torch.tensor([-1e30, -200.0, 200.0, 1e30])
    assert swiglu(torch.cat((extreme, torch.ones(4)))).tolist() == [0.0, 0.0, 200.0, extreme[3].item()]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_where_the_reference_has_it(
    name: str, special: float, dtype: torch.dtype, randn: Randn
) -> None:
    op, inputs, n_grads = calls(randn, dtype, 6, 40)[name]
    inputs[0].view(6, -1)[2, [0, 17, -1]] = special
    with use_backend(None, "reference"):
        expected = results(op, inputs, n_grads)
    with use_backend(None, "cpp"):
        found = results(op, inputs, n_grads)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_threads_change_no_bit(name: str, dtype: torch.dtype, randn: Randn, forced: None) -> None:
    op, inputs, n_grads = calls(randn, dtype, 1_500, 96)[name]
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            found.append(results(op, inputs, n_grads))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_a_row_alone_gives_what_it_gives_among_others(name: str, randn: Randn, forced: None) -> None:
    op, inputs, _ = calls(randn, F32, 70, 24)[name]
    if name in ("rope", "qk_norm_rope"):
        pytest.skip("the angles are of all tokens")
    whole, alone = op(*inputs), op(*(t[33:34] if len(t) == 70 else t for t in inputs))
    pairs = zip(*(y if isinstance(y, tuple) else (y,) for y in (whole, alone)), strict=True)
    assert all(torch.equal(a[33:34], b) for a, b in pairs)


def test_strides_of_rows_tokens_and_heads_are_read_in_place_or_copied(randn: Randn) -> None:
    """Slices, transposed heads, expanded and empty inputs, forward and backward, equal their contiguous copies."""
    x, w = randn(20, 9, 32, seed=0, dtype=F32), randn(32, seed=1, dtype=F32)
    angles = randn(20, 16, seed=2, dtype=F32)
    views: list[tuple[Op, torch.Tensor]] = [
        (lambda t: rms_norm(t, w), x[:, 3]),
        (lambda t: rms_norm(t, w), x[:, :1].expand(20, 4, 32)),
        (lambda t: rms_norm(t, w), x.flatten(1)[:, ::9]),
        (lambda t: add_rms_norm(t, t * 2, w)[0], x[::3, 2]),
        (lambda t: swiglu(t), x.flatten(1)[:, 5:69]),
        (lambda t: swiglu(t), x.transpose(0, 2)[..., :20]),
        (lambda t: rope(t, angles.cos(), angles.sin()), x[:, 1:4]),
        (lambda t: rope(t, angles.cos(), angles.sin()), x.transpose(0, 1).contiguous().transpose(0, 1)),
        (lambda t: rope(t[None], angles.cos()[None], angles.sin()[None]), x[:, ::2]),
        (lambda t: qk_norm_rope(t, w, w, n_heads=2, n_kv_heads=1)[0], x.flatten(1)[:, 32:160]),
        (lambda t: rms_norm(t, w), x[:0, 3]),
        (lambda t: swiglu(t), x[:, :0, :]),
    ]
    with use_backend(None, "cpp"):
        for i, (op, view) in enumerate(views):
            assert not view.is_contiguous() or not view.numel()
            grads = []
            for t in (view.detach().requires_grad_(), view.detach().contiguous().requires_grad_()):
                y = op(t)
                assert isinstance(y, torch.Tensor)
                # Heads with tokens last in memory, as attention's gradients have them.
                dy = torch.linspace(-1, 1, y.numel()).view(y.shape[::-1]).permute(*reversed(range(y.ndim)))
                grads.append((y, *torch.autograd.grad(y, t, dy)))
            assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True)), f"view {i}"


@pytest.mark.parametrize("level", LEVELS)
def test_bfloat16_is_rounded_to_nearest_even_as_pytorch_does(
    level: str, randn: Randn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpp.SIMD_ENVIRONMENT, level)
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(BF16).view(-1, 64)
    # Half and quarter units of the last place: ties, and carries into the exponent and into infinity.
    other = (x.float() * 2**-8 * randn(*x.shape, seed=0, dtype=F32).sign()).to(BF16)
    with use_backend(None, "cpp"):
        _, s = add_rms_norm(x, other, torch.ones(64))
    torch.testing.assert_close(s, (x.float() + other.float()).to(BF16), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_run_by_the_reference_and_the_reason_is_told(dtype: torch.dtype) -> None:
    x = torch.randn(3, 8, dtype=torch.float64).to(dtype)
    assert torch.equal(rms_norm(x, x[0]), reference.rms_norm(x, x[0], 1e-6))
    with (
        use_backend("rms_norm", "cpp"),
        pytest.raises(registry.BackendError, match="cpp: needs float32 or bfloat16"),
    ):
        rms_norm(x, x[0])
    with use_backend("rope", "cpp"), pytest.raises(registry.BackendError, match="needs float32 cos and sin"):
        rope(x[:, None].float(), *[x[:, :4].double()] * 2)


def test_meta_tensors_have_shapes_without_the_extension() -> None:
    x = torch.empty(3, 8, device="meta")
    y, s = add_rms_norm(x, x.clone(), x[0])
    assert y.shape == s.shape == (3, 8) and y.device.type == "meta"


def test_autocast_keeps_the_residual_wide_and_the_branch_narrow(randn: Randn, forced: None) -> None:
    branch = torch.nn.Linear(16, 16)
    x, w = randn(5, 16, seed=0, dtype=F32).requires_grad_(), randn(16, seed=1, dtype=F32).requires_grad_()
    with torch.autocast("cpu", BF16):
        y, s = add_rms_norm(branch(x), x, w)
        (y.float().sum() + s.sum()).backward()
    assert (y.dtype, s.dtype) == (BF16, F32) and x.grad is not None and x.grad.dtype == F32


class Seen(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_forward_and_backward_as_operators(randn: Randn, forced: None) -> None:
    x, seen = randn(4, 16, seed=0, dtype=F32).requires_grad_(), Seen()
    with seen:
        swiglu(x).sum().backward()
    assert {"muomni.swiglu_forward.default", "muomni.swiglu_backward.default"} <= seen.names


def test_the_extension_refuses_sizes_that_cannot_be() -> None:
    assert native is not None
    with pytest.raises(ValueError, match="n_rows, width, n_threads"):
        native.swiglu(0, 0, 0, 0, 0, -1, 4, False, 1, "")
    with pytest.raises(ValueError, match="half_width"):
        native.rope((0, 0, 0, 1), 0, 0, 0, 1, 8, 5, False, False, 1, "")
    with pytest.raises(ValueError, match="no level mmx"):
        native.swiglu(0, 0, 0, 0, 0, 0, 4, False, 1, "mmx")
