"""Cross entropy of rows of logits in Triton: losses, and the logits' gradient in the place of the logits.

For a row z (bias added, soft-capped): lse = log sum exp z, loss = lse - (1 - e) z_y - e mean(z) + c lse^2 with
label smoothing e and z-loss c; dz = softmax(z) (1 + 2 c lse) - (1 - e) [y] - e / V, times 1 - (z / cap)^2 for the
soft cap. Computed in fp32. Rows of at most ONE_PASS logits stay in registers: read once, written once (4 bytes a
logit in bf16). Longer ones are read twice, the first time for a running maximum and sum, the second time mostly
from L2 (6 bytes). Every row is one program's or less, so the sums have a fixed order: deterministic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from muomni_kernels.triton_support import ceil_div, launch, next_power_of_two

ONE_PASS = 16384
"""Widest row that is kept in registers."""
TWO_PASS_BLOCK = 4096
"""Logits of a wider row that are read at a time."""


@triton.jit
def _tanh(x):
    """From the exponential; near zero, where that cancels, from the series."""
    a = tl.abs(x)
    a2 = a * a
    series = a * (1.0 + a2 * (-1.0 / 3 + a2 * (2.0 / 15 + a2 * (-17.0 / 315 + a2 * (62.0 / 2835)))))
    t = tl.where(a < 0.25, series, 1.0 - 2.0 / (tl.exp(2.0 * tl.minimum(a, 20.0)) + 1.0))
    return tl.where(x < 0.0, -t, t)


@triton.jit
def _load(
    logits_ptr, bias_ptr, at, cols, inside, V: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr
):  # fmt: skip
    """Rows of z in fp32, -inf past the end of a row."""
    z = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        z += tl.load(bias_ptr + cols, mask=cols < V, other=0.0).to(tl.float32)[None, :]
    if SOFTCAP > 0.0:
        z = SOFTCAP * _tanh(z * (1.0 / SOFTCAP))
    return tl.where((cols < V)[None, :], z, float("-inf"))


@triton.jit
def _sound(y, counts, V: tl.constexpr):
    """1, or NaN for a row whose label is out of range."""
    return tl.where(counts & ((y < 0) | (y >= V)), float("nan"), 1.0)


@triton.jit
def _loss(lse, z_y, total, V: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr):
    loss = lse - z_y
    if SMOOTHING > 0.0:
        loss += SMOOTHING * (z_y - total / V)
    if Z_LOSS > 0.0:
        loss += Z_LOSS * lse * lse
    return loss


@triton.jit
def _gradient(
    z, lse, y, cols, counts, sound,
    V: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """dz; 0 where a row does not count, NaN where its label is out of range."""
    dz = tl.exp(z - lse[:, None])
    if Z_LOSS > 0.0:
        dz *= (1.0 + 2.0 * Z_LOSS * lse)[:, None]
    dz -= tl.where(cols[None, :] == y[:, None], 1.0 - SMOOTHING, 0.0)
    if SMOOTHING > 0.0:
        dz -= SMOOTHING / V
    if SOFTCAP > 0.0:
        # Past the end of a row z is -inf, and 0 * inf would be NaN there.
        t = tl.maximum(z, -SOFTCAP) * (1.0 / SOFTCAP)
        dz *= 1.0 - t * t
    return tl.where(counts[:, None], dz * sound[:, None], 0.0)


@triton.jit
def _finite(z, cols, V: tl.constexpr):
    return tl.where((cols < V)[None, :], z, 0.0)


@triton.jit
def _ahead(z, z_y, y, cols):
    """How many logits an arg-max would take before the label's; ties go to the lower index. NaN is never behind."""
    behind = (z < z_y[:, None]) | ((z == z_y[:, None]) & (cols[None, :] >= y[:, None]))
    ahead = ~behind
    return tl.sum(ahead.to(tl.int32), axis=1)


@triton.jit
def cross_entropy_kernel(
    logits_ptr, bias_ptr, labels_ptr, losses_ptr, top_ptr, n_rows, first, n_all,
    V: tl.constexpr, BIAS: tl.constexpr, IGNORE: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr,
    SOFTCAP: tl.constexpr, GRADIENT: tl.constexpr, TOP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS whole rows of one head per program. Rows first... of n_all are the chunk's 0...n_rows."""
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    own = rows < n_rows
    inside = own[:, None] & (cols < V)[None, :]
    at = (head * n_rows + rows)[:, None] * V + cols[None, :]
    place = head * n_all + first + rows
    label = tl.load(labels_ptr + place, mask=own, other=IGNORE)
    counts = label != IGNORE
    sound = _sound(label, counts, V)
    y = label.to(tl.int32)
    z = _load(logits_ptr, bias_ptr + head * V, at, cols, inside, V, BIAS, SOFTCAP)
    largest = tl.max(z, axis=1)
    lse = largest + tl.log(tl.sum(tl.exp(z - largest[:, None]), axis=1))
    z_y = tl.sum(tl.where(cols[None, :] == y[:, None], z, 0.0), axis=1)
    total = lse
    if SMOOTHING > 0.0:
        total = tl.sum(_finite(z, cols, V), axis=1)
    loss = _loss(lse, z_y, total, V, SMOOTHING, Z_LOSS) * sound
    tl.store(losses_ptr + place, tl.where(counts, loss, 0.0), mask=own)
    if TOP:
        tl.store(top_ptr + place, counts & (_ahead(z, z_y, y, cols) == 0), mask=own)
    if GRADIENT:
        dz = _gradient(z, lse, y, cols, counts, sound, V, SMOOTHING, Z_LOSS, SOFTCAP)
        tl.store(logits_ptr + at, dz.to(logits_ptr.dtype.element_ty), mask=inside)


@triton.jit
def cross_entropy_wide_kernel(
    logits_ptr, bias_ptr, labels_ptr, losses_ptr, top_ptr, n_rows, first, n_all,
    V: tl.constexpr, BIAS: tl.constexpr, IGNORE: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr,
    SOFTCAP: tl.constexpr, GRADIENT: tl.constexpr, TOP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As cross_entropy_kernel for rows of any width, BLOCK logits at a time."""
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own = rows < n_rows
    start = (head * n_rows + rows)[:, None] * V
    place = head * n_all + first + rows
    label = tl.load(labels_ptr + place, mask=own, other=IGNORE)
    counts = label != IGNORE
    sound = _sound(label, counts, V)
    y = label.to(tl.int32)
    largest = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    scaled = tl.zeros([ROWS], dtype=tl.float32)
    z_y = tl.zeros([ROWS], dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for block in range(0, V, BLOCK):
        cols = block + tl.arange(0, BLOCK)
        inside = own[:, None] & (cols < V)[None, :]
        z = _load(logits_ptr, bias_ptr + head * V, start + cols[None, :], cols, inside, V, BIAS, SOFTCAP)
        new = tl.maximum(largest, tl.max(z, axis=1))
        # A block may be -inf throughout (a masked vocabulary): its maximum must not be subtracted from itself.
        base = tl.where(new == float("-inf"), 0.0, new)
        scaled = scaled * tl.exp(largest - base) + tl.sum(tl.exp(z - base[:, None]), axis=1)
        largest = new
        z_y += tl.sum(tl.where(cols[None, :] == y[:, None], z, 0.0), axis=1)
        if SMOOTHING > 0.0:
            total += tl.sum(_finite(z, cols, V), axis=1)
    lse = largest + tl.log(scaled)
    loss = _loss(lse, z_y, total, V, SMOOTHING, Z_LOSS) * sound
    tl.store(losses_ptr + place, tl.where(counts, loss, 0.0), mask=own)
    if GRADIENT or TOP:
        ahead = tl.zeros([ROWS], dtype=tl.int32)
        for block in range(0, V, BLOCK):
            cols = block + tl.arange(0, BLOCK)
            inside = own[:, None] & (cols < V)[None, :]
            at = start + cols[None, :]
            z = _load(logits_ptr, bias_ptr + head * V, at, cols, inside, V, BIAS, SOFTCAP)
            if TOP:
                ahead += _ahead(z, z_y, y, cols)
            if GRADIENT:
                dz = _gradient(z, lse, y, cols, counts, sound, V, SMOOTHING, Z_LOSS, SOFTCAP)
                tl.store(logits_ptr + at, dz.to(logits_ptr.dtype.element_ty), mask=inside)
        if TOP:
            tl.store(top_ptr + place, counts & (ahead == 0), mask=own)


def tile(vocab_size: int) -> tuple[int, int, int]:
    """Rows, columns and warps of a program."""
    block = min(next_power_of_two(vocab_size), ONE_PASS)
    if vocab_size > ONE_PASS:
        return 1, TWO_PASS_BLOCK, 4
    return max(1, min(16, 2048 // block)), block, max(4, min(16, block // 1024))


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
    """The row pass over one chunk.

    logits: (K, C, V) contiguous; overwritten with their gradient if `gradient`.
    bias:   (K, V) contiguous or None.
    labels: (K, N) int64 contiguous, of which first...first + C are the chunk's.
    losses: (K, N) fp32, written at the chunk's places; top: the same in bool, or None.
    """
    n_heads, n_rows, vocab_size = logits.shape
    rows, block, warps = tile(vocab_size)
    launch(
        cross_entropy_kernel if vocab_size <= ONE_PASS else cross_entropy_wide_kernel,
        (ceil_div(n_rows, rows), n_heads),
        logits, logits if bias is None else bias, labels, losses, losses if top is None else top,
        n_rows, first, labels.shape[1],
        V=vocab_size, BIAS=bias is not None, IGNORE=ignore_index, SMOOTHING=label_smoothing, Z_LOSS=z_loss,
        SOFTCAP=softcap, GRADIENT=gradient, TOP=top is not None, ROWS=rows, BLOCK=block, num_warps=warps,
    )  # fmt: skip
