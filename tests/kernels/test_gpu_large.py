"""Tensors of more than 2^31 elements: the last rows are as right as the first.

With MUOMNI_GPU_TESTS_DEVICE=cpu the same bodies run on small tensors, see test_gpu.py.
"""

import os
from collections.abc import Callable
from typing import Any

import muomni_kernels as ops
import pytest
import torch
from muomni_kernels import triton_support

DEVICE = os.environ.get("MUOMNI_GPU_TESTS_DEVICE", "cuda")
CUDA = DEVICE == "cuda"
ELEMENTS = 2**31 if CUDA else 2**13
NEEDS = 40 * 2**30

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _room() -> None:
    if CUDA:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        if free < NEEDS:
            pytest.skip(f"needs {NEEDS >> 30} GiB of free GPU memory, found {free >> 30}")


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(
        shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE, dtype=torch.bfloat16
    )


def backward(op: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients for dy = 1 / 4, which takes no memory of its own."""
    leaves = tuple(t.detach().requires_grad_() for t in leaves)
    y = op(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.full_like(y[:1], 0.25).expand_as(y))]


@pytest.mark.parametrize("name", ["rms_norm", "swiglu"])
def test_the_ends_of_a_row_wise_op_equal_a_call_of_their_own(name: str) -> None:
    width = 256 if name == "rms_norm" else 2048
    x = rand(ELEMENTS // width + 5, width, seed=0)
    assert x.numel() > ELEMENTS
    others = [rand(width, seed=1)] if name == "rms_norm" else []
    op = getattr(ops, name)
    y, dx = backward(op, x, *others)[:2]
    for rows in (slice(0, 64), slice(-64, None)):
        part = backward(op, x[rows], *others)
        assert torch.equal(y[rows], part[0]) and torch.equal(dx[rows], part[1])
    middle = slice(len(x) // 2 - 3, len(x) // 2 + 3)
    assert torch.equal(y[middle], op(x[middle], *others))


def test_a_head_of_more_labels_times_classes_than_int32_holds() -> None:
    width = 64
    classes = 32_768 if CUDA else 128
    rows = ELEMENTS // classes + 8
    x, weight = rand(rows, width, seed=0), rand(classes, width, seed=1) / 8
    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(2)).to(DEVICE)

    def head(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        loss, count = ops.linear_cross_entropy(x, weight, labels)
        assert int(count) == len(labels)
        return [loss.detach(), *torch.autograd.grad(loss, (x, weight))]

    loss, dx, dw = head(x, weight, labels)
    total, dw_total = (
        torch.zeros((), device=DEVICE, dtype=torch.float64),
        torch.zeros_like(dw, dtype=torch.float64),
    )
    for part in torch.arange(rows).tensor_split(4):
        rows_of = slice(int(part[0]), int(part[-1]) + 1)
        some, dx_some, dw_some = head(x[rows_of], weight, labels[rows_of])
        total, dw_total = total + some, dw_total + dw_some
        difference = (dx[rows_of].float() - dx_some.float()).abs().max()
        assert difference <= 2**-7 * dx_some.abs().max()
    assert abs(float(total) - float(loss)) <= 1e-5 * float(loss)
    # Each of the four is rounded to bf16, and so is the whole.
    assert (dw.double() - dw_total).abs().max() <= 2**-6 * dw_total.abs().max()


def test_the_last_rows_of_more_logits_than_int32_holds() -> None:
    """The row pass itself: the head above gives it a chunk at a time, which never is that large."""
    if triton_support.available() is None:
        from muomni_kernels.triton_cross_entropy import cross_entropy_rows
    else:
        from muomni_kernels.head_chunks import cross_entropy_rows
    classes = 32_768 if CUDA else 128
    rows = ELEMENTS // classes + 8
    logits = rand(1, rows, classes, seed=0)
    labels = torch.randint(classes, (1, rows), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    options: dict[str, Any] = {
        "ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0, "softcap": 0.0, "gradient": True,
    }  # fmt: skip
    for last in (slice(rows - 8, rows), slice(rows // 2, rows // 2 + 8)):
        part, part_labels = logits[:, last].clone(), labels[:, last].contiguous()
        part_losses = torch.empty(1, 8, device=DEVICE)
        cross_entropy_rows(part, None, part_labels, part_losses, None, first=0, **options)
        whole, losses = logits.clone(), torch.full((1, rows), float("nan"), device=DEVICE)
        cross_entropy_rows(whole, None, labels, losses, None, first=0, **options)
        assert torch.equal(losses[:, last], part_losses) and torch.equal(whole[:, last], part)
        assert torch.isfinite(losses).all()
        del whole
