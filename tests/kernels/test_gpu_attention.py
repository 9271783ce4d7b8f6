"""Attention's backends on a GPU: parity with plain PyTorch, documents, windows, rows of no document, decoding.

With MUOMNI_GPU_TESTS_DEVICE=cpu the same bodies run on the CPU's backends, see test_gpu.py.
"""

import os

import pytest
import torch
from muomni_kernels import attention, attention_decode, registry, use_backend

DEVICE = os.environ.get("MUOMNI_GPU_TESTS_DEVICE", "cuda")
CUDA = DEVICE == "cuda"
LENGTHS = [512, 1, 300, 129, 512, 64] if CUDA else [24, 1, 15, 9]
TAIL = 46 if CUDA else 3
DTYPES = [torch.bfloat16, torch.float16, torch.float32]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def rand(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def softmax_product(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, window: int | None
) -> torch.Tensor:
    """One document or one row of a cache, its queries the last of its keys: (Tq, H, D), (Tk, Hkv, D) twice.

    Scores, weights and result are each rounded to q's dtype, as plain PyTorch at that precision does.
    """
    groups, n_keys = q.shape[1] // k.shape[1], k.shape[0]
    queries, keys, values = (t.transpose(0, 1) for t in (q, k, v))
    keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
    position = torch.arange(n_keys, device=q.device)
    before = position[-q.shape[0] :, None] - position
    hidden = before.abs() >= (n_keys if window is None else window)
    if causal:
        hidden = hidden | (before < 0)
    scores = (queries @ keys.transpose(1, 2) * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ values).transpose(0, 1)


def packed_product(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, window: int | None
) -> torch.Tensor:
    parts = zip(*(t.split([*LENGTHS, TAIL])[:-1] for t in (q, k, v)), strict=True)
    pieces = [softmax_product(*part, causal=causal, window=window) for part in parts]
    return torch.cat([*pieces, q.new_zeros(TAIL, *q.shape[1:])])


def assert_as_exact(found: torch.Tensor, expected: torch.Tensor, plain: torch.Tensor) -> None:
    """The error is at most twice that of plain PyTorch in the mean square, and nowhere four times its largest."""
    assert found.dtype == plain.dtype and torch.isfinite(found).all()
    error, allowed = (t.double() - expected for t in (found, plain))
    scale = expected.abs().max()
    assert error.norm() <= 2 * allowed.norm() + 1e-6 * expected.norm()
    assert error.abs().max() <= 4 * allowed.abs().max() + 2e-6 * scale


def reason_against(op: str, backend: str, *arguments: object) -> str | None:
    return next(row for row in registry.backends(op) if row.name == backend).supports(*arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 2, 10])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["flash", "varlen", "sdpa_mask"])
def test_packed_attention_is_as_exact_as_plain_pytorch(
    backend: str, causal: bool, window: int | None, dtype: torch.dtype
) -> None:
    bounds = torch.tensor([0, *LENGTHS, 0], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(DEVICE)
    n_used, longest = sum(LENGTHS), max(LENGTHS)
    leaves = [rand(n_used + TAIL, h, 64, seed=h, dtype=dtype) for h in (4, 2, 3)]
    leaves[2] = leaves[2][:, :2]  # As a view of packed projections is.
    if backend != "sdpa_mask":  # There every row is in one product, where 0 * NaN is NaN.
        for t in leaves:
            t[n_used:] = torch.nan
    if reason := reason_against("attention", backend, *leaves, bounds, longest, causal, window):
        pytest.skip(f"{backend}: {reason}")
    dy = rand(n_used + TAIL, 4, 64, seed=9, dtype=dtype)
    results = []
    for wide, ours in ((dtype, True), (torch.float64, False), (dtype, False)):
        inputs = [t.detach().to(wide).requires_grad_() for t in leaves]
        if ours:
            with use_backend("attention", backend):
                out = attention(*inputs, cu_seqlens=bounds, max_seqlen=longest, causal=causal, window=window)
        else:
            out = packed_product(*inputs, causal=causal, window=window)
        results.append([out.detach(), *torch.autograd.grad(out, inputs, dy.to(wide))])
    for found, expected, plain in zip(*results, strict=True):
        assert_as_exact(found, expected, plain)
        assert found[n_used:].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_queries", [1, 5])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("backend", ["flash", "sdpa"])
def test_decoding_is_as_exact_as_plain_pytorch(
    backend: str, window: int | None, n_queries: int, dtype: torch.dtype
) -> None:
    q, k, v = (rand(3, t, h, 64, seed=t, dtype=dtype) for t, h in ((n_queries, 4), (80, 2), (80, 2)))
    lengths = torch.tensor([80, 33, 5], dtype=torch.int32)
    on_device = lengths.to(DEVICE)
    if reason := reason_against("attention_decode", backend, q, k, v, on_device, window):
        pytest.skip(f"{backend}: {reason}")
    with use_backend("attention_decode", backend):
        found = attention_decode(q, k, v, lengths=on_device, window=window)
    for row, n in enumerate(lengths.tolist()):
        expected, plain = (
            softmax_product(
                *(t.to(wide) for t in (q[row], k[row, :n], v[row, :n])), causal=True, window=window
            )
            for wide in (torch.float64, dtype)
        )
        assert_as_exact(found[row], expected, plain)
