"""Residual vector quantisation in Triton: all levels in one kernel.

Per level a tile of rows meets the codebook in blocks of words: score = |c|^2 - 2 r.c with r.c in fp32 (no tf32: a
rounded score would name another word), a running best that only a smaller score replaces, so the lower index wins a
tie. Then the word is gathered and taken off the residual. The residual and the sum of words lie in global memory, which
for one tile means the caches: held in registers they spill, because the product needs both its factors there.
Bytes per row: 4 D read, 8 K + 4 D written; the codebooks come from L2. Arithmetic: 2 K S D a row, as K products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from muomni_kernels.triton_support import ceil_div, launch

WORDS, PART = 64, 16
"""Words of a block, and features of a step of its product."""
REGISTERS = 168
"""Most registers of a thread: three blocks of four warps fit on a multiprocessor; left alone, ptxas may spill."""


@triton.jit
def vq_nearest_kernel(
    z_ptr, books_ptr, norms_ptr, codes_ptr, residual_ptr, total_ptr, n_rows,
    LEVELS: tl.constexpr, S: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, WORDS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """ROWS rows per program, through all levels."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own = rows < n_rows
    row_at = rows.to(tl.int64)[:, None] * D
    parts = tl.arange(0, PART)
    for part in range(0, D, PART):
        cols = part + parts
        inside = own[:, None] & (cols < D)[None, :]
        z = tl.load(z_ptr + row_at + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(residual_ptr + row_at + cols[None, :], z, mask=inside)
        tl.store(total_ptr + row_at + cols[None, :], tl.zeros_like(z), mask=inside)
    for level in range(LEVELS):
        book = books_ptr + level * (S * D)
        best = tl.full([ROWS], float("inf"), dtype=tl.float32)
        # What no score is smaller than, NaN rows among them, keeps word 0.
        code = tl.zeros([ROWS], dtype=tl.int32)
        # The residual was written by other threads than those that read it now.
        tl.debug_barrier()
        for first in range(0, S, WORDS):
            words = first + tl.arange(0, WORDS)
            dots = tl.zeros([ROWS, WORDS], dtype=tl.float32)
            for part in tl.range(0, D, PART, num_stages=2):
                cols = part + parts
                inside = own[:, None] & (cols < D)[None, :]
                r = tl.load(residual_ptr + row_at + cols[None, :], mask=inside, other=0.0)
                there = (words < S)[None, :] & (cols < D)[:, None]
                c = tl.load(book + words[None, :] * D + cols[:, None], mask=there, other=0.0)
                dots = tl.dot(r, c, dots, input_precision="ieee")
            norm = tl.load(norms_ptr + level * S + words, mask=words < S, other=float("inf"))
            score = norm[None, :] - 2.0 * dots
            low, at = tl.min(score, axis=1, return_indices=True, return_indices_tie_break_left=True)
            code = tl.where(low < best, at + first, code)
            best = tl.minimum(low, best)
        tl.store(codes_ptr + rows.to(tl.int64) * LEVELS + level, code.to(tl.int64), mask=own)
        tl.debug_barrier()
        for part in range(0, D, PART):
            cols = part + parts
            inside = own[:, None] & (cols < D)[None, :]
            at = row_at + cols[None, :]
            word = tl.load(book + code[:, None] * D + cols[None, :], mask=inside, other=0.0)
            tl.store(
                residual_ptr + at, tl.load(residual_ptr + at, mask=inside, other=0.0) - word, mask=inside
            )
            tl.store(total_ptr + at, tl.load(total_ptr + at, mask=inside, other=0.0) + word, mask=inside)


def nearest(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """z (N, D), codebooks (K, S, D) fp32 -> codes (N, K) int64 and the sum of their words (N, D) fp32."""
    n_rows = z.shape[0]
    levels, size, d = codebooks.shape
    z, codebooks = z.contiguous(), codebooks.contiguous()
    codes = z.new_empty(n_rows, levels, dtype=torch.int64)
    total = z.new_empty(n_rows, d, dtype=torch.float32)
    if codes.numel():
        # Few rows: smaller tiles, so that more multiprocessors have one.
        rows = 64 if n_rows > 8_192 else 32
        launch(
            vq_nearest_kernel, (ceil_div(n_rows, rows),),
            z, codebooks, codebooks.square().sum(-1), codes, torch.empty_like(total), total, n_rows,
            LEVELS=levels, S=size, D=d, ROWS=rows, WORDS=WORDS, PART=PART, maxnreg=REGISTERS,
        )  # fmt: skip
    else:
        total.zero_()
    return codes, total
