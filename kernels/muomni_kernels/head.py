"""linear_cross_entropy: the output head and its loss in one op that never holds all logits."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from muomni_kernels import checks, head_chunks, reference, registry, triton_support
from muomni_kernels.library import operator

Pair = tuple[torch.Tensor, torch.Tensor]
Options = tuple[int, float, float, float]
"""ignore_index, label_smoothing, z_loss, softcap."""


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    reduction: Literal["sum", "none"] = "sum",
) -> Pair:
    """Cross entropy in nats of z = x W^T + bias, without the full logits; many heads in one call.

    x:      (N, D), or (N, K, D) for K heads; any strides; not modified.
    weight: (V, D), or (K, V, D); of x's dtype or a wider one, whose gradient it then gets.
    labels: (N,) or (N, K) int64 in [0, V), or ignore_index: no loss, no gradient.
    bias:   (V,), or (K, V), or None.
    softcap > 0: z = softcap tanh(z / softcap). With lse = log sum exp z and e = label_smoothing a row's loss is
    lse - (1 - e) z_y - e mean(z) + z_loss lse^2.
    Products are in x's dtype (under autocast in autocast's), the losses in fp32, dW is summed in fp32.

    reduction "sum": returns the summed loss () fp32 and the number of labels that count () int64; (K,) each
    with heads. The loss is differentiable once, in x, weight and bias; its gradients are computed on the way.
    reduction "none": for evaluation. Returns each row's loss, labels' shape, fp32, without gradient, and whether
    its label has the largest logit (of equal ones the first has), bool; 0 and False where a label is ignored.

    Raises ValueError for other ranks, widths, dtypes, devices or options. A label out of range raises on a CPU;
    on a GPU, which is not waited for, and in a compiled graph its loss and gradients become NaN.
    """
    _check(x, weight, labels, bias)
    _check_options(label_smoothing, z_loss, softcap, reduction)
    heads, weight = x.ndim == 3, checks.apart(x, weight)
    if not heads:
        x, weight, labels = x[:, None], weight[None], labels[:, None]
        bias = None if bias is None else bias[None]
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(labels, ignore_index, weight.shape[1])
    options = (ignore_index, label_smoothing, z_loss, softcap)
    device = x.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            first, second = _run(x, weight, labels, bias, options, reduction)
    else:
        first, second = _run(x, weight, labels, bias, options, reduction)
    if heads:
        return first, second
    return (first.view(()), second.view(())) if reduction == "sum" else (first[:, 0], second[:, 0])


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    options: Options,
    reduction: str,
) -> Pair:
    arguments = (x, weight, labels, bias, options, reduction)
    return registry.select("linear_cross_entropy", *arguments)(*arguments)


def _check(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None) -> None:
    if x.ndim not in (2, 3):
        raise ValueError(f"x: expected (N, D) or (N, K, D), got {tuple(x.shape)}.")
    width, n_heads = x.shape[-1], x.shape[1:-1]
    if weight.ndim != x.ndim or weight.shape[-1] != width or weight.shape[:-2] != n_heads:
        wanted = "(V, D)" if x.ndim == 2 else "(K, V, D)"
        raise ValueError(f"weight: expected {wanted} for x {tuple(x.shape)}, got {tuple(weight.shape)}.")
    if weight.shape[-2] < 1:
        raise ValueError(f"weight: expected at least one class, got {tuple(weight.shape)}.")
    if labels.shape != x.shape[:-1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels: expected {tuple(x.shape[:-1])} int64 for x {tuple(x.shape)}, got "
            f"{tuple(labels.shape)} {labels.dtype}."
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise ValueError(f"bias: expected {tuple(weight.shape[:-1])}, got {tuple(bias.shape)}.")
    checks.floating("x", x)
    checks.floating("weight", weight)
    if bias is not None:
        checks.floating("bias", bias)
    checks.one_device("x", x, weight=weight, labels=labels, bias=bias)


def _check_options(label_smoothing: float, z_loss: float, softcap: float, reduction: str) -> None:
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing: expected a number in [0, 1), got {label_smoothing}.")
    for name, value in (("z_loss", z_loss), ("softcap", softcap)):
        if not 0.0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value}.")
    if reduction not in ("sum", "none"):
        raise ValueError(f"reduction: expected 'sum' or 'none', got {reduction!r}.")


def _check_range(labels: torch.Tensor, ignore_index: int, vocab_size: int) -> None:
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= vocab_size))
    if bool(wrong.any()):
        raise ValueError(
            f"labels: expected values in [0, {vocab_size}) or ignore_index {ignore_index}, got "
            f"{int(labels[wrong][0])}."
        )


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    triton: bool,
    want_top: bool,
    want_x: bool,
    want_w: bool,
    want_b: bool,
) -> tuple[torch.Tensor, ...]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows, table = (x.shape[1], x.shape[0]), weight.shape
    return (
        x.new_empty(rows, dtype=wide),
        x.new_empty(rows if want_top else (0,), dtype=torch.bool),
        x.new_empty(x.shape if want_x else (0,)),
        x.new_empty(table if want_w else (0,), dtype=wide),
        x.new_empty(table[:2] if want_b else (0,), dtype=wide),
    )


@operator(
    "linear_cross_entropy_forward(Tensor x, Tensor weight, Tensor? bias, Tensor labels, int ignore_index, "
    "float label_smoothing, float z_loss, float softcap, bool triton, bool want_top, bool want_x, bool want_w, "
    "bool want_b) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
)
def linear_cross_entropy_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    triton: bool,
    want_top: bool,
    want_x: bool,
    want_w: bool,
    want_b: bool,
) -> tuple[torch.Tensor, ...]:
    """Losses (K, N), top (K, N), dx, dw, db: see head_chunks.forward."""
    arguments = (x, weight, bias, labels, ignore_index, label_smoothing, z_loss, softcap)
    want = (want_x, want_w, want_b)
    if x.device.type == "cpu" and not triton:
        return head_chunks.forward_of_counted(*arguments, want_top=want_top, want=want)
    return head_chunks.forward(*arguments, triton=triton, want_top=want_top, want=want)


class LinearCrossEntropy(torch.autograd.Function):
    """Each head's summed loss (K,) of x, weight and bias; `want` says whose gradients to compute on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        options: Options,
        triton: bool,
        want: tuple[bool, bool, bool],
    ) -> torch.Tensor:
        losses, _, *grads = linear_cross_entropy_forward(
            x, weight, bias, labels, *options, triton, False, *want
        )
        ctx.save_for_backward(*grads)
        ctx.want = want
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        return losses.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dloss,) = grads
        # One head: a scalar leaves half gradients in their dtype, one pass without a wide copy.
        scale = dloss[0] if len(dloss) == 1 else dloss
        shapes = ((-1, 1), (-1, 1, 1), (-1, 1))
        scaled = (
            (saved * (scale if scale.ndim == 0 else scale.view(shape))).to(dtype) if wanted else None
            for saved, shape, wanted, dtype in zip(
                ctx.saved_tensors, shapes, ctx.want, ctx.dtypes, strict=True
            )
        )
        return *scaled, None, None, None, None


def _chunked(
    x: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    options: Options,
    reduction: str,
    *,
    triton: bool,
) -> Pair:
    if reduction == "none":
        with torch.no_grad():
            losses, top, *_ = linear_cross_entropy_forward(
                x, weight, bias, labels, *options, triton, True, False, False, False
            )
        return losses.t(), top.t()
    enabled = torch.is_grad_enabled()
    want = (
        enabled and x.requires_grad,
        enabled and weight.requires_grad,
        enabled and bias is not None and bias.requires_grad,
    )
    loss = LinearCrossEntropy.apply(x, weight, bias, labels, options, triton, want)
    return loss, (labels != options[0]).sum(0)


def _with_triton(*arguments: Any) -> Pair:
    """The row pass in Triton."""
    return _chunked(*arguments, triton=True)


def _with_torch(*arguments: Any) -> Pair:
    """The row pass in plain PyTorch."""
    return _chunked(*arguments, triton=False)


def _triton_supports(
    x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None, *_: object
) -> str | None:
    return triton_support.reason_against(x, weight, labels, bias)


registry.register(
    "linear_cross_entropy", "triton", _with_triton,
    supports=_triton_supports, available=triton_support.available,
)  # fmt: skip
registry.register("linear_cross_entropy", "chunked", _with_torch)
registry.register("linear_cross_entropy", "reference", reference.linear_cross_entropy)
