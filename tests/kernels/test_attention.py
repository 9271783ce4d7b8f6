"""Attention: every backend against the explicit softmax in fp64, isolation of documents, decoding."""

import pytest
import torch
from muomni_kernels import attention, attention_decode, reference, use_backend

LENGTHS = {
    "mixed": [5, 1, 130, 17, 64],
    "equal": [24] * 6,
    "one": [200],
    "short": [1, 2, 3] * 30,
}


def rows(lengths: list[int], *, heads: int = 4, kv_heads: int = 2, tail: int = 0, pad: int = 0):
    generator = torch.Generator().manual_seed(len(lengths) + tail)
    total = sum(lengths) + tail
    q, k, v = (
        torch.randn(total, h, 16, generator=generator, requires_grad=True)
        for h in (heads, kv_heads, kv_heads)
    )
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return q, k, v, torch.cat((cu, cu[-1:].repeat(pad)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("backend", ["chunked", "sdpa_mask"])
def test_forward_and_gradients_match_the_explicit_softmax(backend: str, name: str, causal: bool) -> None:
    q, k, v, cu = rows(LENGTHS[name], tail=3, pad=2)
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    expected = reference.attention(*wide, cu, 200, causal)
    with use_backend("attention", backend):
        found = attention(q, k, v, cu_seqlens=cu, max_seqlen=200, causal=causal)
    assert found[sum(LENGTHS[name]) :].eq(0).all(), "rows of no document give zeros"
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    dy = torch.randn(found.shape, generator=torch.Generator().manual_seed(9))
    for a, b in zip(
        torch.autograd.grad(found, (q, k, v), dy),
        torch.autograd.grad(expected, wide, dy.double()),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_reference_is_softmax_of_scaled_products() -> None:
    q, k, v, cu = (t.detach() for t in rows([3], heads=1, kv_heads=1))
    out = reference.attention(q, k, v, cu, 3, True)
    scores = [float(q[2, 0] @ k[j, 0]) / 4.0 for j in range(3)]
    weights = torch.tensor(scores).softmax(0)
    torch.testing.assert_close(out[2, 0], sum(w * v[j, 0] for j, w in enumerate(weights)))
    torch.testing.assert_close(out[0, 0], v[0, 0])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["chunked", "sdpa_mask", "reference"])
def test_changing_one_document_changes_no_bit_of_another(backend: str, causal: bool) -> None:
    q, k, v, cu = (t.detach() for t in rows([40, 90, 33]))
    with use_backend("attention", backend):
        before = attention(q, k, v, cu_seqlens=cu, max_seqlen=90, causal=causal)
        for t in (q, k, v):
            t[40:130] = torch.randn_like(t[40:130]) * 100
        after = attention(q, k, v, cu_seqlens=cu, max_seqlen=90, causal=causal)
    assert torch.equal(before[:40], after[:40]) and torch.equal(before[130:], after[130:])
    assert not torch.equal(before[40:130], after[40:130])


def test_no_document_at_all() -> None:
    q, k, v = (torch.randn(4, h, 8) for h in (2, 1, 1))
    for backend in ("chunked", "reference"):
        with use_backend("attention", backend):
            cu = torch.zeros(3, dtype=torch.int32)
            assert attention(q, k, v, cu_seqlens=cu, max_seqlen=1, causal=True).eq(0).all()


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_decoding_equals_the_full_forward_and_reads_nothing_past_the_length(backend: str) -> None:
    q, k, v, cu = (t.detach() for t in rows([12]))
    full = attention(q, k, v, cu_seqlens=cu, max_seqlen=12, causal=True)
    k_cache, v_cache = torch.full((1, 20, 2, 16), torch.nan), torch.full((1, 20, 2, 16), torch.nan)
    k_cache, v_cache = (torch.zeros_like(c) for c in (k_cache, v_cache))
    k_cache[0, 12:], v_cache[0, 12:] = 1e4, 1e4
    done = 0
    with use_backend("attention_decode", backend):
        for count in (5, 1, 1, 3, 2):
            k_cache[0, done : done + count], v_cache[0, done : done + count] = (
                k[done : done + count],
                v[done : done + count],
            )
            done += count
            out = attention_decode(
                q[None, done - count : done], k_cache, v_cache, lengths=torch.tensor([done])
            )
            torch.testing.assert_close(out[0], full[done - count : done], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_decoding_rows_of_different_lengths_equals_each_alone(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(3, n, h, 16, generator=generator) for n, h in ((2, 4), (9, 2), (9, 2)))
    lengths = torch.tensor([9, 4, 2])
    with use_backend("attention_decode", backend):
        together = attention_decode(q, k, v, lengths=lengths)
        for row in range(3):
            n = int(lengths[row])
            alone = attention_decode(
                q[row : row + 1], k[row : row + 1, :n], v[row : row + 1, :n], lengths=lengths[row : row + 1]
            )
            torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-6)


def test_wrong_shapes_are_named() -> None:
    q, k, v, cu = rows([4])
    with pytest.raises(ValueError, match="q, k, v: expected"):
        attention(q, k[:2], v[:2], cu_seqlens=cu, max_seqlen=4, causal=True)
    with pytest.raises(ValueError, match="number of heads that divides 4, got 3"):
        attention(
            q,
            k[:, :1].expand(-1, 3, -1),
            v[:, :1].expand(-1, 3, -1),
            cu_seqlens=cu,
            max_seqlen=4,
            causal=True,
        )
    with pytest.raises(ValueError, match="int32"):
        attention(q, k, v, cu_seqlens=cu.long(), max_seqlen=4, causal=True)
    with pytest.raises(ValueError, match="q, caches"):
        attention_decode(q[None], k[None], v[None, :2], lengths=torch.tensor([4]))
    with pytest.raises(ValueError, match="lengths"):
        attention_decode(q[None], k[None], v[None], lengths=torch.tensor([4, 4]))
