"""linear_cross_entropy without Triton: against PyTorch's own cross entropy in fp64, its memory, and the checks."""

from typing import Any

import pytest
import torch
from muomni_kernels import head, head_chunks, linear_cross_entropy, triton_support, use_backend
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

BACKENDS = ("reference", "chunked")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-2},
    "softcap": {"softcap": 3.0},
    "all": {"label_smoothing": 0.2, "z_loss": 1e-3, "softcap": 5.0},
}


def tensors(
    n: int = 21, heads: tuple[int, ...] = (), width: int = 12, vocab_size: int = 50, *, dtype: torch.dtype
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """x, weight, bias, which ask for gradients; labels, every fourth row without a target."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, *heads, width), (*heads, vocab_size, width), (*heads, vocab_size))
    leaves = [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes
    ]
    labels = torch.randint(vocab_size, (n, *heads), generator=generator)
    labels[1::4] = -100
    return leaves, labels


def expected_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Each row's loss of one head by PyTorch's cross entropy."""
    z = F.linear(x, weight, bias)
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    rows = F.cross_entropy(z, labels, reduction="none", label_smoothing=label_smoothing)
    return rows + z_loss * torch.where(labels == -100, 0.0, torch.logsumexp(z, -1) ** 2)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_head_equals_pytorchs_cross_entropy(backend: str, options: dict[str, Any]) -> None:
    (x, weight, bias), labels = tensors(dtype=torch.float64)
    rows = expected_rows(x, weight, bias, labels, **options)
    with use_backend("linear_cross_entropy", backend):
        loss, count = linear_cross_entropy(x, weight, labels, bias=bias, **options)
        each, _ = linear_cross_entropy(x, weight, labels, bias=bias, reduction="none", **options)
    torch.testing.assert_close(loss, rows.sum())
    torch.testing.assert_close(each, rows.detach())
    assert count.shape == () and count.item() == (labels != -100).sum() and not each.requires_grad
    grads = (torch.autograd.grad(value, (x, weight, bias)) for value in (loss, rows.sum()))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_heads_equal_one_at_a_time(backend: str, options: dict[str, Any]) -> None:
    leaves, labels = tensors(heads=(3,), dtype=torch.float64)
    x, weight, bias = leaves
    labels[2, 1] = -100  # A row where only some heads have a target.
    scale = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    with use_backend("linear_cross_entropy", backend):
        loss, count = linear_cross_entropy(x, weight, labels, bias=bias, **options)
    rows = [expected_rows(x[:, k], weight[k], bias[k], labels[:, k], **options).sum() for k in range(3)]
    torch.testing.assert_close(loss, torch.stack(rows))
    assert torch.equal(count, (labels != -100).sum(0))
    grads = (torch.autograd.grad(value @ scale, leaves) for value in (loss, torch.stack(rows)))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [(), (2,)], ids=["one head", "2 heads"])
def test_gradients_against_finite_differences(heads: tuple[int, ...], backend: str) -> None:
    leaves, labels = tensors(5, heads, 3, 7, dtype=torch.float64)

    def loss(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        with use_backend("linear_cross_entropy", backend):
            return linear_cross_entropy(x, weight, labels, bias=bias, **OPTIONS["all"])[0]

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("heads", [(), (2,)], ids=["one head", "2 heads"])
def test_the_sum_over_parts_and_over_chunks_is_the_whole(
    heads: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, labels = tensors(40, heads, dtype=torch.float32)
    x, weight, bias = leaves
    whole, count = linear_cross_entropy(x, weight, labels, bias=bias)
    parts = [
        linear_cross_entropy(x[i : i + 13], weight, labels[i : i + 13], bias=bias) for i in range(0, 40, 13)
    ]
    monkeypatch.setattr(head_chunks, "chunk_tokens", lambda *_: 7)
    chunked, _ = linear_cross_entropy(x, weight, labels, bias=bias)
    assert torch.equal(count, torch.stack([c for _, c in parts]).sum(0))
    grads = [torch.autograd.grad(whole.sum(), leaves)]
    for other in (torch.stack([loss for loss, _ in parts]).sum(0), chunked):
        torch.testing.assert_close(other, whole)
        grads.append(torch.autograd.grad(other.sum(), leaves))
        for found, expected in zip(grads[-1], grads[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class _Largest(TorchDispatchMode):
    """The most entries of a tensor that anything made."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return made


@pytest.mark.parametrize("shape", [(4096, (), 2048), (1024, (8,), 1024)], ids=str)
def test_no_tensor_holds_all_logits(shape: tuple[int, tuple[int, ...], int]) -> None:
    n, heads, vocab_size = shape
    leaves, labels = tensors(n, heads, 8, vocab_size, dtype=torch.float32)
    n_logits = labels.numel() * vocab_size
    largest = {}
    for backend in BACKENDS:
        with use_backend("linear_cross_entropy", backend), _Largest() as seen:
            loss, _ = linear_cross_entropy(leaves[0], leaves[1], labels, bias=leaves[2])
            torch.autograd.grad(loss.sum(), leaves)
        largest[backend] = seen.entries
    assert largest["reference"] == n_logits and largest["chunked"] <= n_logits // 4, largest


@pytest.mark.skipif(triton_support.available() == "triton is not installed", reason="triton is not installed")
@pytest.mark.parametrize(
    ("n", "n_heads", "vocab_size", "width"), [(65_536, 1, 32_768, 256), (16_384, 8, 1_024, 64)]
)
def test_no_tensor_holds_all_logits_on_a_gpu(n: int, n_heads: int, vocab_size: int, width: int) -> None:
    """Meta tensors take the GPU's chunks; more logits than int32 counts are no trouble either."""
    half = {"dtype": torch.bfloat16, "device": "meta"}
    x, weight = torch.empty(n, n_heads, width, **half), torch.empty(n_heads, vocab_size, width, **half)
    labels = torch.empty(n, n_heads, dtype=torch.int64, device="meta")
    with triton_support.record_launches() as launches, _Largest() as seen:
        losses, _, dx, dw, _ = head_chunks.forward(
            x,
            weight,
            None,
            labels,
            -100,
            0.0,
            0.0,
            0.0,
            triton=True,
            want_top=False,
            want=(True, True, False),
        )
    assert seen.entries <= max(x.numel(), 4096 * n_heads * vocab_size) < n * n_heads * vocab_size // 3
    assert (losses.shape, dx.shape, dw.shape) == ((n_heads, n), x.shape, weight.shape)
    assert dw.dtype == losses.dtype == torch.float32 and dx.dtype == torch.bfloat16
    # The chunks cover the tokens once, in order.
    starts = [launch.arguments[6] for launch in launches]
    sizes = [launch.arguments[5] for launch in launches]
    assert starts == [sum(sizes[:i]) for i in range(len(sizes))] and sum(sizes) == n


def test_rows_without_a_target_do_not_matter() -> None:
    (x, weight, _), labels = tensors(dtype=torch.float32)
    with torch.no_grad():
        x[labels == -100] = float("nan")
    loss, _ = linear_cross_entropy(x, weight, labels)
    dx, dw = torch.autograd.grad(loss, (x, weight))
    assert loss.isfinite() and dw.isfinite().all() and dx.isfinite().all()
    assert not dx[labels == -100].any() and dx[labels != -100].any(1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_and_no_targets_give_zeros(backend: str) -> None:
    for n in (0, 3):
        leaves, labels = tensors(n, (2,), dtype=torch.float32)
        with use_backend("linear_cross_entropy", backend):
            loss, count = linear_cross_entropy(leaves[0], leaves[1], labels.fill_(-100), bias=leaves[2])
            each, top = linear_cross_entropy(leaves[0], leaves[1], labels, reduction="none")
        assert loss.tolist() == [0.0, 0.0] and count.tolist() == [0, 0]
        assert each.shape == top.shape == (n, 2) and not each.any() and not top.any()
        for leaf, grad in zip(leaves, torch.autograd.grad(loss.sum(), leaves), strict=True):
            assert grad.shape == leaf.shape and not grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_likeliest_label_is_the_arg_max(backend: str) -> None:
    (x, weight, bias), labels = tensors(dtype=torch.float32)
    logits = F.linear(x, weight, bias)
    labels[::2] = logits.argmax(-1)[::2]
    with use_backend("linear_cross_entropy", backend):
        _, top = linear_cross_entropy(x, weight, labels, bias=bias, reduction="none")
        equal = torch.ones(3, 12), torch.ones(50, 12)
        _, first = linear_cross_entropy(*equal, torch.tensor([0, 1, 49]), reduction="none")
    assert torch.equal(top, logits.argmax(-1) == labels) and top[::2].all() and not top.all()
    assert first.tolist() == [True, False, False], "of equal logits the first"


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_equals_eager_with_ignored_labels(backend: str) -> None:
    leaves, labels = tensors(dtype=torch.float32)
    x, weight, bias = leaves

    def mean(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss, count = linear_cross_entropy(x, weight, labels, bias=bias, label_smoothing=0.1)
        return loss / count

    with use_backend("linear_cross_entropy", backend):
        compiled = torch.compile(mean, fullgraph=True, backend="aot_eager")
        for ignored in (labels, labels.roll(1)):
            expected, found = (
                torch.autograd.grad(f(x, weight, bias, ignored), leaves) for f in (mean, compiled)
            )
            for a, b in zip(expected, found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        labels[3] = 50
        assert compiled(x, weight, bias, labels).isnan(), "out of range, and no way to raise"


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_tensor_as_input_and_as_weight_gets_both_gradients(backend: str) -> None:
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(9).roll(1)
    with use_backend("linear_cross_entropy", backend):
        loss, _ = linear_cross_entropy(x, x, labels)
    (expected,) = torch.autograd.grad(F.cross_entropy(x @ x.T, labels, reduction="sum"), x)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_wide_weight_of_half_inputs_gets_a_wide_gradient() -> None:
    (x, weight, _), labels = tensors(200, dtype=torch.float32)
    half = x.detach().bfloat16().requires_grad_()
    loss, _ = linear_cross_entropy(half, weight, labels)
    dx, dw = torch.autograd.grad(loss, (half, weight))
    assert (loss.dtype, dx.dtype, dw.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert not torch.equal(dw, dw.bfloat16().float()), "it was summed and kept in fp32"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under, _ = linear_cross_entropy(x, weight, labels)
    assert torch.equal(under, loss)
    assert torch.equal(torch.autograd.grad(under, weight)[0], dw)


def test_no_gradient_is_computed_where_none_is_asked_for() -> None:
    (x, weight, bias), labels = tensors(dtype=torch.float32)
    wide = x.numel() + weight.numel()
    with torch.no_grad(), _Largest() as seen:
        loss, _ = linear_cross_entropy(x, weight, labels, bias=bias)
    assert not loss.requires_grad and seen.entries < wide + labels.numel() * 50
    _, _, dx, dw, db = head.linear_cross_entropy_forward(
        x.detach()[:, None],
        weight.detach()[None],
        None,
        labels[:, None],
        -100,
        0.0,
        0.0,
        0.0,
        False,
        False,
        False,
        True,
        False,
    )
    assert (dx.numel(), db.numel()) == (0, 0) and dw.shape == (1, 50, 12)


@pytest.mark.parametrize(
    ("n", "n_heads", "vocab_size"), [(1, 1, 8), (1024, 1, 1024), (5000, 8, 1024), (3, 1, 10**7)]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_chunks_are_of_about_one_size_and_bounded(n: int, n_heads: int, vocab_size: int, device: str) -> None:
    size = head_chunks.chunk_tokens(torch.empty(n, n_heads, 4, device=device), vocab_size)
    n_chunks = -(-n // size)
    step = 1 if device == "cpu" else 128
    assert size >= 1 and n_chunks * size < n + n_chunks * step
    most = (
        max(16 * vocab_size, head_chunks.CPU_LOGITS)
        if device == "cpu"
        else head_chunks.MAX_TOKENS * vocab_size
    )
    assert size * vocab_size <= most


X, W, Y = torch.zeros(4, 8), torch.zeros(10, 8), torch.zeros(4, dtype=torch.int64)
BAD: dict[str, tuple[str, tuple[torch.Tensor, ...], dict[str, Any]]] = {
    "rank": ("x: expected", (X[0], W, Y), {}),
    "width": ("weight: expected", (X, W[:, :7], Y), {}),
    "heads of the weight": ("weight: expected", (X[:, None], W, Y[:, None]), {}),
    "number of heads": ("weight: expected", (X[:, None].expand(4, 3, 8), W.expand(2, 10, 8), Y[:, None]), {}),
    "no class": ("weight: expected at least one class", (X, W[:0], Y), {}),
    "labels' length": ("labels: expected", (X, W, Y[:3]), {}),
    "labels' dtype": ("labels: expected", (X, W, Y.int()), {}),
    "labels' rank": ("labels: expected", (X, W, Y[:, None]), {}),
    "bias": ("bias: expected", (X, W, Y), {"bias": torch.zeros(9)}),
    "x's dtype": ("x: expected a floating", (X.int(), W, Y), {}),
    "weight's dtype": ("weight: expected a floating", (X, W.int(), Y), {}),
    "bias' dtype": ("bias: expected a floating", (X, W, Y), {"bias": torch.zeros(10).int()}),
    "weight's device": ("weight: expected x's device", (X, W.to("meta"), Y), {}),
    "labels' device": ("labels: expected x's device", (X, W, Y.to("meta")), {}),
    "label": ("labels: expected values in .0, 10.*got 10", (X, W, Y + 10), {}),
    "negative label": ("labels: expected values.*got -1", (X, W, Y - 1), {}),
    "default ignore_index": ("labels: expected values.*got -100", (X, W, Y - 100), {"ignore_index": -1}),
    "smoothing": ("label_smoothing: expected", (X, W, Y), {"label_smoothing": 1.0}),
    "z_loss": ("z_loss: expected", (X, W, Y), {"z_loss": -1.0}),
    "softcap": ("softcap: expected", (X, W, Y), {"softcap": float("nan")}),
    "reduction": ("reduction: expected", (X, W, Y), {"reduction": "mean"}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    message, arguments, options = BAD[name]
    x, weight, labels = arguments
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(x, weight, labels, **options)
