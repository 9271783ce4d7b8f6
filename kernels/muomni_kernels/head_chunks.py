"""The chunk loop of linear_cross_entropy: head and loss of some tokens at a time, gradients along the way.

A chunk's logits are one product; a row pass turns them into losses and, in the same buffer, into their gradient;
two more products take that to dx and, summed over the chunks in fp32, to dW. No buffer holds more logits than a
chunk's. The row pass is Triton's or, in plain PyTorch, the one here.
"""

from __future__ import annotations

import torch

CPU_LOGITS = 1 << 20
"""Logits of a chunk on a CPU: 4 MiB in fp32. Measured: flat from half to four times this."""
GPU_BYTES = 32 << 20
"""Bytes of a chunk's logits elsewhere: they stay in the L2 of most cards (36 to 50 MB), not in a small one's.
512 tokens at a vocabulary of 32,768 in bf16. Not yet tuned on a GPU."""
MIN_TOKENS, MAX_TOKENS = 512, 4096
"""Bounds of a chunk elsewhere: fewer tokens starve the products, more gain nothing."""


def chunk_tokens(x: torch.Tensor, vocab_size: int) -> int:
    """Tokens of a chunk for x (N, K, D): chunks of about one size, at least 1."""
    n, n_heads, _ = x.shape
    if x.device.type == "cpu":
        most, step = max(16, CPU_LOGITS // (n_heads * vocab_size)), 1
    else:
        fitting = GPU_BYTES // (n_heads * vocab_size * x.element_size())
        most, step = max(MIN_TOKENS, min(MAX_TOKENS, fitting)), 128
    n_chunks = max(1, -(-n // most))
    return max(1, -(-n // (n_chunks * step)) * step)


def cross_entropy_rows(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    losses: torch.Tensor,
    top: torch.Tensor | None,
    *,
    first: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    gradient: bool,
) -> None:
    """The row pass in plain PyTorch: see triton_cross_entropy.cross_entropy_rows; losses may be fp64."""
    vocab_size = logits.shape[2]
    chosen = slice(first, first + logits.shape[1])
    y = labels[:, chosen]
    # Half logits are widened; fp32 and fp64 ones are ours to overwrite.
    z = logits.to(losses.dtype)
    if bias is not None:
        z += bias[:, None]
    if softcap:
        z.div_(softcap).tanh_().mul_(softcap)
    ignored = y == ignore_index
    wrong = ((y < 0) | (y >= vocab_size)) & ~ignored
    place = y.clamp(0, vocab_size - 1).unsqueeze(2)
    z_y = z.gather(2, place).squeeze(2)
    if top is not None:
        top[:, chosen] = z.argmax(2) == y
    slope = 1 - (z / softcap).square() if gradient and softcap else None
    mean = z.mean(2) if label_smoothing else None
    largest = z.amax(2)
    z.sub_(largest.unsqueeze(2)).exp_()
    total = z.sum(2)
    lse = largest + total.log()
    loss = lse - z_y
    factor = total.reciprocal_()
    if mean is not None:
        loss += label_smoothing * (z_y - mean)
    if z_loss:
        loss += z_loss * lse.square()
        factor *= 1 + 2 * z_loss * lse
    losses[:, chosen] = loss.masked_fill_(ignored, 0.0).masked_fill_(wrong, float("nan"))
    if not gradient:
        return
    z.mul_(factor.masked_fill_(ignored, 0.0).masked_fill_(wrong, float("nan")).unsqueeze(2))
    hit = (ignored.to(z.dtype) - 1).unsqueeze(2)
    z.scatter_add_(2, place, hit * (1 - label_smoothing) if label_smoothing else hit)
    if label_smoothing:
        z.add_(hit, alpha=label_smoothing / vocab_size)
    if slope is not None:
        z.mul_(slope)
    if z is not logits:
        logits.copy_(z)


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a b of (K, M, C) and (K, C, N), into `out` where there is one. One head is a plain product: faster on a CPU."""
    if len(a) > 1:
        return torch.bmm(a, b, out=out)
    return torch.mm(a[0], b[0], out=None if out is None else out[0])[None]


def _add_product(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """total + a b in at least fp32; total is ours and changed, None for zero."""
    if a.dtype in (torch.float16, torch.bfloat16):
        if a.is_cuda:
            # `out=total` keeps the sum in place: without it the sum so far is copied every time.
            if total is None:
                return torch.bmm(a, b, out_dtype=torch.float32)
            return torch.baddbmm(total, a, b, out_dtype=torch.float32, out=total)
        a, b = a.float(), b.float()
    if total is None:
        return _product(a, b)
    if len(a) > 1:
        return total.baddbmm_(a, b)
    total[0].addmm_(a[0], b[0])
    return total


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    *,
    triton: bool,
    want_top: bool,
    want: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses (K, N) and top (K, N) bool; dx like x, dw (K, V, D) and db (K, V), both at least fp32.

    x (N, K, D), weight (K, V, D), bias (K, V), labels (N, K) as linear_cross_entropy takes them. `want` names
    the gradients of x, weight and bias that are needed, for a gradient of 1 of every head's summed loss; what
    is not wanted is empty.
    """
    if triton:
        from muomni_kernels.triton_cross_entropy import cross_entropy_rows as row_pass
    else:
        row_pass = cross_entropy_rows
    (n, n_heads, width), vocab_size = x.shape, weight.shape[1]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, labels = weight.to(x.dtype), labels.t().contiguous()
    bias = None if bias is None else bias.contiguous()
    losses = x.new_empty(n_heads, n, dtype=wide)
    top = x.new_empty((n_heads, n) if want_top else (0,), dtype=torch.bool)
    want_x, want_w, want_b = want
    dx = x.new_empty(x.shape if want_x else (0,))
    dw: torch.Tensor | None = None
    db: torch.Tensor | None = None
    size = chunk_tokens(x, vocab_size)
    # One buffer for every chunk: a new one each time is cleared by the operating system, which costs as much as a
    # product on a CPU.
    buffer = x.new_empty(n_heads * min(size, n) * vocab_size)
    for first in range(0, n, size):
        last = min(first + size, n)
        some = x[first:last].transpose(0, 1)
        logits = buffer[: n_heads * (last - first) * vocab_size].view(n_heads, last - first, vocab_size)
        _product(some, weight.transpose(1, 2), logits)
        row_pass(
            logits, bias, labels, losses, top if want_top else None,
            first=first, ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
            softcap=softcap, gradient=want_x or want_w or want_b,
        )  # fmt: skip
        if want_x:
            _product(logits, weight, dx[first:last].transpose(0, 1))
        if want_w:
            dw = _add_product(dw, logits.transpose(1, 2), some)
        if want_b:
            column = logits.sum(1, dtype=wide)
            db = column if db is None else db.add_(column)
    if dw is None:
        dw = x.new_zeros((n_heads, vocab_size, width) if want_w else (0,), dtype=wide)
    if db is None:
        db = x.new_zeros((n_heads, vocab_size) if want_b else (0,), dtype=wide)
    return losses, top, dx, dw, db


def forward_of_counted(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    ignore_index: int,
    *options: float,
    want_top: bool,
    want: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`forward` in plain PyTorch over the rows where a label counts; the others, zeros, cost nothing.

    It reads the labels, which on a GPU would be a sync. In the omni stage a third of the positions are targets.
    """
    kept = (labels != ignore_index).any(1).nonzero().squeeze(1)
    rest = (ignore_index, *options)
    if len(kept) == len(labels):
        return forward(x, weight, bias, labels, *rest, triton=False, want_top=want_top, want=want)
    losses, top, dx, dw, db = forward(
        x[kept], weight, bias, labels[kept], *rest, triton=False, want_top=want_top, want=want
    )
    shape = (x.shape[1], x.shape[0])
    losses = losses.new_zeros(shape).index_copy_(1, kept, losses)
    if want_top:
        top = top.new_zeros(shape).index_copy_(1, kept, top)
    if want[0]:
        dx = dx.new_zeros(x.shape).index_copy_(0, kept, dx)
    return losses, top, dx, dw, db
