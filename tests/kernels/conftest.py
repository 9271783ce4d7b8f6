"""What the kernel tests share: seeded tensors on the device at hand, and the parity rule."""

import os
from collections.abc import Callable

import pytest
import torch
from muomni_kernels import use_backend

# On a GPU the cases run there; in the interpreter CUDA is hidden.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The backend that the cases compare with the reference; test_row_cpp.py runs those of the row-wise ops with "cpp".
BACKEND = os.environ.get("MUOMNI_CASES", "triton")


def _randn(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def _close(found: torch.Tensor, expected: torch.Tensor, plain: torch.Tensor) -> None:
    assert found.dtype == plain.dtype and found.shape == expected.shape and torch.isfinite(found).all()
    if not found.numel():
        return
    expected, found, plain = expected.detach(), found.detach(), plain.detach()
    scale = float(expected.abs().max()) + 1e-6
    error, allowed = (float((t.double() - expected).abs().max()) for t in (found, plain))
    assert error <= 2 * allowed + 1e-6 + 2e-6 * scale, f"error {error:.2e}, plain PyTorch {allowed:.2e}"


def _compare(
    op: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    inputs: list[torch.Tensor],
    n_grads: int,
    *,
    stride_zero: bool = False,
) -> None:
    results = []
    for dtype, backend in ((torch.float64, "reference"), (None, "reference"), (None, BACKEND)):
        leaves = [t.detach().to(dtype or t.dtype).requires_grad_(i < n_grads) for i, t in enumerate(inputs)]
        with use_backend(None, backend):
            out = op(*leaves)
            outputs = out if isinstance(out, tuple) else (out,)
            if stride_zero:
                total = sum(y.sum() for y in outputs)
                assert isinstance(total, torch.Tensor)
                grads = torch.autograd.grad(total, leaves[:n_grads])
            else:
                # The same numbers for all three, rounded to the dtype of the call under test.
                dys = [
                    _randn(*y.shape, seed=99 + i, dtype=torch.float32).to(inputs[0].dtype)
                    for i, y in enumerate(outputs)
                ]
                grads = torch.autograd.grad(
                    outputs, leaves[:n_grads], [dy.to(y.dtype) for dy, y in zip(dys, outputs, strict=True)]
                )
        results.append([*outputs, *grads])
    for expected, plain, found in zip(*results, strict=True):
        _close(found, expected, plain)


@pytest.fixture
def randn() -> Callable[..., torch.Tensor]:
    """randn(*shape, seed=, dtype=): the same numbers on every device."""
    return _randn


@pytest.fixture
def close() -> Callable[..., None]:
    """close(found, expected in fp64, plain): kernel error at most twice that of plain PyTorch at the same precision,
    and a small absolute term; dtype, shape and finiteness too."""
    return _close


@pytest.fixture
def compare() -> Callable[..., None]:
    """compare(op, inputs, n_grads, stride_zero=False): outputs and the gradients of the first n_grads inputs,
    the backend under test against fp64, measured by plain PyTorch's own error. stride_zero: gradients of a sum,
    which are expanded scalars."""
    return _compare
