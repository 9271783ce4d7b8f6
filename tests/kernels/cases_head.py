"""linear_cross_entropy with its Triton row pass, in the interpreter or on a GPU, against the reference in fp64.

Not collected by name: test_triton.py runs the cases_*.py in a process of their own; see cases_rowwise.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from muomni_kernels import head_chunks, linear_cross_entropy, triton_cross_entropy, use_backend
from torch.library import opcheck

Randn = Callable[..., torch.Tensor]
Compare = Callable[..., None]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-2},
    "softcap": {"softcap": 3.0},
    "all": {"label_smoothing": 0.2, "z_loss": 1e-3, "softcap": 5.0},
}


def summed(*arguments: torch.Tensor, **options: Any) -> torch.Tensor:
    """The loss alone, (1,) or (K,)."""
    x, weight, labels = arguments
    return linear_cross_entropy(x, weight, labels, **options)[0].reshape(-1)


def labels_for(n: int, heads: tuple[int, ...], vocab_size: int, *, ignored: bool = True) -> torch.Tensor:
    """(n, *heads) labels, every fourth row without a target; the last class is among them."""
    labels = torch.randint(vocab_size, (n, *heads), generator=torch.Generator().manual_seed(7))
    if n:
        labels[-1] = vocab_size - 1
    if ignored:
        labels[1::4] = -100
    return labels


def tensors(
    n: int, heads: tuple[int, ...], width: int, vocab_size: int, randn: Randn, dtype: torch.dtype
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """x, weight, bias; labels."""
    x = randn(n, *heads, width, seed=0, dtype=dtype)
    weight = 0.3 * randn(*heads, vocab_size, width, seed=1, dtype=dtype)
    bias = randn(*heads, vocab_size, seed=2, dtype=dtype)
    return [x, weight, bias], labels_for(n, heads, vocab_size).to(x.device)


@pytest.fixture(params=["one pass", "two passes"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either kernel at narrow rows: the second in blocks that do not divide them."""
    if request.param == "two passes":
        monkeypatch.setattr(triton_cross_entropy, "ONE_PASS", 8)
        monkeypatch.setattr(triton_cross_entropy, "TWO_PASS_BLOCK", 64)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("heads", [(), (3,)], ids=["one head", "3 heads"])
def test_losses_and_gradients(
    heads: tuple[int, ...],
    options: dict[str, Any],
    dtype: torch.dtype,
    passes: str,
    randn: Randn,
    compare: Compare,
) -> None:
    # Some blocks of rows for the first kernel; the second takes a row at a time, each slow in the interpreter.
    inputs, labels = tensors(17 if passes == "one pass" else 5, heads, 12, 123, randn, dtype)
    # Half gradients are rounded before the incoming one scales them (and dlogits before the bias' sum), so the
    # yardstick, which rounds once, fits where that is 1.
    half = dtype == torch.float16
    compare(
        lambda x, w, b: summed(x, w, labels, bias=b, **options), inputs, 2 if half else 3, stride_zero=half
    )


@pytest.mark.parametrize("heads", [(), (3,)], ids=["one head", "3 heads"])
def test_half_gradients_after_scaling_and_of_the_bias(heads: tuple[int, ...], randn: Randn) -> None:
    inputs, labels = tensors(40, heads, 12, 123, randn, torch.float16)
    found = []
    for dtype, backend in ((torch.float64, "reference"), (torch.float16, "triton")):
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        with use_backend(None, backend):
            loss = summed(leaves[0], leaves[1], labels, bias=leaves[2])
            found.append(torch.autograd.grad((loss / 40).sum(), leaves))
    for expected, grad in zip(*found, strict=True):
        assert grad.dtype == torch.float16
        assert (grad.double() - expected).abs().max() <= 2**-10 * expected.abs().max()


@pytest.mark.parametrize(
    ("n", "heads", "width", "vocab_size"),
    [(1, (), 8, 1), (5, (), 123, 7), (9, (2,), 16, 64), (3, (), 8, 2100), (0, (), 8, 16), (0, (2,), 8, 16)],
)
def test_shapes(
    n: int, heads: tuple[int, ...], width: int, vocab_size: int, randn: Randn, compare: Compare
) -> None:
    inputs, labels = tensors(n, heads, width, vocab_size, randn, torch.float32)
    compare(lambda x, w: summed(x, w, labels), inputs[:2], 2)


@pytest.mark.parametrize("heads", [(), (2,)], ids=["one head", "2 heads"])
def test_many_chunks_equal_one(heads: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, randn: Randn) -> None:
    inputs, labels = tensors(50, heads, 16, 40, randn, torch.float32)
    found = []
    for size in (50, 7):
        monkeypatch.setattr(head_chunks, "chunk_tokens", lambda *_, size=size: size)
        leaves = [t.clone().requires_grad_() for t in inputs]
        with use_backend(None, "triton"):
            loss, count = linear_cross_entropy(leaves[0], leaves[1], labels, bias=leaves[2])
        found.append([loss, count, *torch.autograd.grad(loss.sum(), leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_only_the_gradients_that_are_needed(which: tuple[int, ...], randn: Randn) -> None:
    inputs, labels = tensors(9, (2,), 8, 24, randn, torch.float32)
    results = []
    for backend in ("reference", "triton"):
        leaves = [t.clone().requires_grad_(i in which) for i, t in enumerate(inputs)]
        with use_backend(None, backend):
            loss, _ = linear_cross_entropy(leaves[0], leaves[1], labels, bias=leaves[2])
        results.append(torch.autograd.grad(loss @ loss.new_tensor([0.5, 2.0]), [leaves[i] for i in which]))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_sliced_inputs_and_expanded_gradients(randn: Randn, compare: Compare) -> None:
    inputs, labels = tensors(12, (2,), 16, 30, randn, torch.float32)
    labels = labels.repeat(2, 1)[::2]
    compare(
        lambda x, w, b: summed(x[::2, :, 4:], w[..., 4:], labels[:6], bias=b[:]),
        inputs,
        3,
        stride_zero=True,
    )
    # One row and one weight for all: strides of zero.
    x, weight = inputs[0][:1].expand(12, -1, -1), inputs[1][:1].expand(2, -1, -1)
    compare(lambda x, w: summed(x, w, labels), [x, weight], 2)


def test_rows_all_ignored_and_an_ignore_index_that_is_a_class(randn: Randn, compare: Compare) -> None:
    inputs, labels = tensors(6, (), 8, 20, randn, torch.float32)
    leaves = [t.requires_grad_() for t in inputs]
    with use_backend(None, "triton"):
        loss, count = linear_cross_entropy(
            leaves[0], leaves[1], torch.full_like(labels, -100), bias=leaves[2]
        )
    assert loss.item() == 0.0 and count.item() == 0 and count.dtype == torch.int64
    assert all(not g.any() for g in torch.autograd.grad(loss, leaves))
    labels = labels.clamp(min=0)
    compare(lambda x, w: summed(x, w, labels, ignore_index=0), inputs[:2], 2)


@pytest.mark.parametrize("label", [20, -1, 2**32 + 3], ids=str)
def test_a_label_out_of_range_makes_loss_and_gradients_nan(label: int, passes: str, randn: Randn) -> None:
    (x, weight, _), labels = tensors(6, (), 8, 20, randn, torch.float32)
    labels[3] = label
    operator = torch.ops.muomni.linear_cross_entropy_forward
    losses, _, dx, dw, _ = operator(
        x[:, None], weight[None], None, labels[:, None], -100, 0.0, 0.0, 0.0, True, False, True, True, False
    )
    assert losses[0].isnan().tolist() == [False, False, False, True, False, False]
    assert dx[3].isnan().all() and dx[[0, 1, 2, 4, 5]].isfinite().all() and dw.isnan().all()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_row_for_evaluation(options: dict[str, Any], passes: str, randn: Randn) -> None:
    (x, weight, bias), labels = tensors(10, (2,), 8, 70, randn, torch.float32)
    weight[:, 30:34] = weight[:, 10:14]
    bias[:, 30:34] = bias[:, 10:14]
    with use_backend(None, "reference"):
        best = linear_cross_entropy(x, weight, labels, bias=bias, reduction="none", **options)
        z = torch.einsum("nkd,kvd->nkv", x, weight) + bias
        labels[::2] = z.argmax(-1)[::2]
        expected = linear_cross_entropy(x, weight, labels, bias=bias, reduction="none", **options)
    assert not torch.equal(best[1], expected[1])
    with use_backend(None, "triton"):
        losses, top = linear_cross_entropy(
            x.requires_grad_(), weight, labels, bias=bias, reduction="none", **options
        )
    torch.testing.assert_close(losses, expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(top, expected[1]) and top.dtype == torch.bool and not losses.requires_grad
    assert (losses == 0)[labels == -100].all()


def test_of_equal_logits_the_first_is_the_likeliest(passes: str, randn: Randn) -> None:
    x = randn(3, 8, seed=0, dtype=torch.float32)
    weight = torch.ones(80, 8, device=x.device)
    with use_backend(None, "triton"):
        _, top = linear_cross_entropy(x, weight, torch.tensor([0, 1, 79], device=x.device), reduction="none")
    assert top.tolist() == [True, False, False]


def test_a_row_of_nan_has_no_likeliest_label(passes: str, randn: Randn) -> None:
    x = randn(3, 8, seed=0, dtype=torch.float32)
    x[1] = float("nan")
    weight, labels = randn(80, 8, seed=1, dtype=torch.float32), torch.tensor([5, 5, 5], device=x.device)
    with use_backend(None, "triton"):
        losses, top = linear_cross_entropy(x, weight, labels, reduction="none")
    assert not top[1] and losses.isnan().tolist() == [False, True, False]


def test_one_tensor_as_states_and_as_weights_gets_both_gradients(randn: Randn) -> None:
    x, labels = (
        randn(4, 4, 8, seed=0, dtype=torch.float32).requires_grad_(),
        torch.zeros(4, 4, dtype=torch.int64),
    )
    labels = labels.to(x.device)

    def loss(t: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(t, t, labels)[0].sum()

    grads = []
    for backend, function in (
        ("reference", loss),
        ("triton", torch.compile(loss, fullgraph=True, backend="aot_eager")),
    ):
        with use_backend(None, backend):
            grads.append(torch.autograd.grad(function(x), x)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


def test_a_masked_vocabulary(passes: str, randn: Randn) -> None:
    """A bias of -inf leaves a class out, also a whole block of them."""
    (x, weight, bias), _ = tensors(5, (), 8, 140, randn, torch.float32)
    bias[:70] = float("-inf")
    labels = torch.tensor([70, 139, 80, 90, -100], device=x.device)
    leaves = [t.requires_grad_() for t in (x, weight)]
    expected = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
    with use_backend(None, "triton"):
        loss, _ = linear_cross_entropy(x, weight, labels, bias=bias)
    torch.testing.assert_close(loss, expected)
    grads = (torch.autograd.grad(value, leaves) for value in (loss, expected))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_large_logits_neither_overflow_nor_vanish(passes: str) -> None:
    x = torch.tensor([[1.0], [-1.0]], device=DEVICE)
    weight = torch.linspace(-3e4, 3e4, 50, device=x.device)[:, None]
    labels = torch.tensor([0, 0], device=x.device)
    with use_backend(None, "triton"):
        losses, _ = linear_cross_entropy(x, weight, labels, reduction="none")
    torch.testing.assert_close(losses.cpu(), torch.tensor([6e4, 0.0]))


def test_compiled_without_a_break_equals_eager(randn: Randn) -> None:
    inputs, labels = tensors(13, (2,), 8, 30, randn, torch.float32)

    def step(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        many, counts = linear_cross_entropy(x, w, labels, bias=b, label_smoothing=0.1)
        one, count = linear_cross_entropy(x[:, 0], w[0], labels[:, 0].clamp(min=3), ignore_index=3)
        return (many / counts).sum() + one / count

    leaves = [t.requires_grad_() for t in inputs]
    with use_backend(None, "triton"):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (13, 9):
            arguments = [leaves[0][:n], *leaves[1:], labels[:n]]
            expected, found = (torch.autograd.grad(f(*arguments), leaves) for f in (step, compiled))
            for a, b in zip(expected, found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_autocast_computes_in_its_dtype_and_sums_the_weights_gradient_in_fp32(randn: Randn) -> None:
    (x, weight, _), labels = tensors(40, (), 16, 30, randn, torch.float32)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    with use_backend(None, "triton"):
        with torch.autocast(x.device.type, dtype=torch.float16):
            loss, _ = linear_cross_entropy(leaves[0], leaves[1], labels)
        found = [loss, *torch.autograd.grad(loss, leaves)]
        halves = [t.detach().half().requires_grad_() for t in leaves]
        loss, _ = linear_cross_entropy(halves[0], halves[1], labels)
        expected = [loss, *torch.autograd.grad(loss, halves)]
    assert [t.dtype for t in found] == [torch.float32] * 3
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1].float())
    assert torch.equal(found[2].half(), expected[2]) and not torch.equal(found[2], expected[2].float())


@pytest.mark.parametrize("wants", [(False, True, True, True), (True, False, False, False)], ids=str)
def test_operator_schema_fake_and_autograd_registration(wants: tuple[bool, ...], randn: Randn) -> None:
    (x, weight, bias), labels = tensors(6, (2,), 8, 20, randn, torch.float32)
    for given in (bias, None):
        opcheck(
            torch.ops.muomni.linear_cross_entropy_forward.default,
            (x, weight, given, labels, -100, 0.1, 0.0, 0.0, True, *wants[:3], wants[3] and given is not None),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def test_a_second_derivative_raises(randn: Randn) -> None:
    (x, weight, _), labels = tensors(4, (), 8, 10, randn, torch.float32)
    x.requires_grad_()
    with use_backend(None, "triton"):
        (dx,) = torch.autograd.grad(linear_cross_entropy(x, weight, labels)[0] ** 2, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_the_row_pass_overwrites_its_own_buffer_alone(randn: Randn) -> None:
    inputs, labels = tensors(8, (2,), 8, 20, randn, torch.float32)
    before = [t.clone() for t in (*inputs, labels)]
    with use_backend(None, "triton"):
        leaves = [t.requires_grad_() for t in inputs]
        loss, _ = linear_cross_entropy(leaves[0], leaves[1], labels, bias=leaves[2])
        first, again = (torch.autograd.grad(loss.sum(), leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a.detach(), b) for a, b in zip((*inputs, labels), before, strict=True))
