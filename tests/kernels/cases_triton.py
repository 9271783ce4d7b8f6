"""Triton kernels in the interpreter or on a GPU, against the references in fp64.

Not collected by name: test_triton.py runs this file in a process of its own with TRITON_INTERPRET=1, which
must be set before triton is imported; on a GPU it runs without.
"""

import pytest
import torch
from muomni_kernels import reference, registry, rms_norm, rope, swiglu, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(5, 123), (1, 128), (33, 192), (7, 256), (3, 5, 512), (0, 64), (4, 1)]
DTYPES = [torch.float32, torch.float16]


def randn(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(found: torch.Tensor, expected: torch.Tensor, plain: torch.Tensor) -> None:
    """Kernel error at most twice that of plain PyTorch at the same precision, and a small absolute term."""
    assert found.dtype == plain.dtype and found.shape == expected.shape and torch.isfinite(found).all()
    if not found.numel():
        return
    scale = float(expected.abs().max()) + 1e-6
    error, allowed = (float((t.double() - expected).abs().max()) for t in (found, plain))
    assert error <= 2 * allowed + 1e-6 + 2e-6 * scale, f"error {error:.2e}, plain PyTorch {allowed:.2e}"


def compare(op, inputs: list[torch.Tensor], n_grads: int, *, stride_zero: bool = False) -> None:
    """Forward and gradients of an op, Triton against fp64, measured by plain PyTorch's own error."""
    results = []
    for dtype, backend in ((torch.float64, "reference"), (None, "reference"), (None, "triton")):
        leaves = [t.detach().to(dtype or t.dtype).requires_grad_(i < n_grads) for i, t in enumerate(inputs)]
        with use_backend(None, backend):
            y = op(*leaves)
            if stride_zero:
                grads = torch.autograd.grad(y.sum(), leaves[:n_grads])
            else:
                dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(99)).to(
                    DEVICE, inputs[0].dtype
                )
                grads = torch.autograd.grad(y, leaves[:n_grads], dy.to(y.dtype))
        results.append([y, *grads])
    for expected, plain, found in zip(*results, strict=True):
        close(found, expected, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w = randn(*shape, seed=0, dtype=dtype), randn(shape[-1], seed=1, dtype=dtype)
    compare(rms_norm, [x, w], 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotary", [32, 24])
@pytest.mark.parametrize("shape", [(5, 3, 32), (9, 1, 64), (2, 7, 2, 32), (0, 2, 32)], ids=str)
def test_rope(shape: tuple[int, ...], rotary: int, dtype: torch.dtype) -> None:
    angles = randn(*shape[:-2], rotary // 2, seed=1, dtype=torch.float32)
    compare(rope, [randn(*shape, seed=0, dtype=dtype), angles.cos(), angles.sin()], 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 246), (3, 2, 768), (0, 8), (1, 2)], ids=str)
def test_swiglu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(swiglu, [randn(*shape, seed=0, dtype=dtype)], 1)


def test_stride_zero_gradients_and_sliced_inputs() -> None:
    x, w = randn(6, 256, seed=0, dtype=torch.float32), randn(128, seed=1, dtype=torch.float32)
    compare(rms_norm, [x[:, ::2], w], 2, stride_zero=True)
    compare(swiglu, [x[::2, 10:110]], 1, stride_zero=True)
    angles = randn(6, 16, seed=1, dtype=torch.float32)
    compare(rope, [x.view(6, 4, 64)[:, 1:3, :40], angles.cos(), angles.sin()], 1, stride_zero=True)


def test_compiled_without_a_break_equals_eager() -> None:
    def block(x: torch.Tensor, w: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return swiglu(rope(rms_norm(x, w), cos, sin).flatten(1))

    x, w = (randn(*s, seed=0, dtype=torch.float32).requires_grad_() for s in ((6, 2, 16), (16,)))
    angles = randn(6, 8, seed=1, dtype=torch.float32)
    assert registry.select("rms_norm", x, w, 1e-6) is registry.backends("rms_norm")[0].run, "Triton runs"
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    a = torch.autograd.grad(compiled(x, w, angles.cos(), angles.sin()).square().sum(), (x, w))
    b = torch.autograd.grad(block(x, w, angles.cos(), angles.sin()).square().sum(), (x, w))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_large_values_do_not_overflow_fp16() -> None:
    x = randn(3, 128, seed=0, dtype=torch.float16) * 7.5e3
    with use_backend("rms_norm", "triton"):
        y = rms_norm(x, torch.ones(128, dtype=torch.float16, device=DEVICE))
    assert torch.isfinite(y).all()
    expected = reference.rms_norm(x.double(), torch.ones(128, dtype=torch.float64, device=DEVICE), 1e-6)
    assert (y.double() - expected).abs().max() < 4e-3


def test_the_same_call_twice_gives_the_same_bits() -> None:
    x = randn(200, 128, seed=0, dtype=torch.float32).requires_grad_()
    w = randn(128, seed=1, dtype=torch.float32).requires_grad_()
    with use_backend("rms_norm", "triton"):
        a, b = (torch.autograd.grad(rms_norm(x, w).square().sum(), (x, w)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
