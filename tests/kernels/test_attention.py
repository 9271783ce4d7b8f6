"""Attention: every backend against the explicit softmax in fp64, isolation of documents, decoding."""

import pytest
import torch
from muomni_kernels import attend, attention, attention_decode, reference, use_backend

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


@pytest.mark.parametrize("causal", [True, False])
def test_varlen_hides_what_the_kernel_leaves_unwritten(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel(torch.autograd.Function):
        """What the CUDA kernel does: right inside the documents, anything in the rows of none."""

        @staticmethod
        def forward(ctx, q, k, v, cu, causal):
            ctx.save_for_backward(q, k, v)
            ctx.rest = (cu, 200, causal)
            out = reference.attention(q, k, v, *ctx.rest)
            out[cu[-1] :] = torch.nan
            return out

        @staticmethod
        def backward(ctx, *grads):
            cu = ctx.rest[0]
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
                found = torch.autograd.grad(reference.attention(*leaves, *ctx.rest), leaves, grads[0])
            for t in found:
                t[cu[-1] :] = torch.nan
            return *found, None, None

    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size):
        assert cu_q is cu_k and max_q == max_k == 200 and window_size == ((-1, 0) if causal else (-1, -1))
        return Kernel.apply(q, k, v, cu_q, window_size[1] == 0)

    monkeypatch.setattr(attend, "varlen_attn", kernel)
    q, k, v, cu = rows([5, 130, 17], tail=9, pad=2)
    found = attend._varlen(q, k, v, cu, 200, causal)
    expected = reference.attention(q, k, v, cu, 200, causal)
    torch.testing.assert_close(found, expected)
    dy = torch.randn(found.shape, generator=torch.Generator().manual_seed(9))
    for a, b in zip(
        torch.autograd.grad(found, (q, k, v), dy), torch.autograd.grad(expected, (q, k, v), dy), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_a_torch_whose_varlen_lacks_the_window_is_a_reason_against_it() -> None:
    assert attend._reason_against_varlen(lambda q, window_size: None) is None
    assert "no window_size" in attend._reason_against_varlen(lambda q, is_causal: None)
    assert "no torch.nn.attention.varlen" in attend._reason_against_varlen(None)


@pytest.mark.parametrize("backend", ["chunked", "sdpa_mask", "reference"])
def test_rows_of_no_document_may_hold_anything_and_give_zeros(backend: str) -> None:
    q, k, v, cu = (t.detach() for t in rows([40, 7], tail=5))
    for t in (q, k, v):
        t[47:] = torch.nan
    with use_backend("attention", backend):
        out = attention(q, k, v, cu_seqlens=cu, max_seqlen=40, causal=True)
    assert out[47:].eq(0).all()
    if backend != "sdpa_mask":  # There every row is in one product, where 0 * NaN is NaN.
        assert torch.isfinite(out).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("backend", ["varlen", "sdpa_mask"])
def test_gpu_attention_matches_the_explicit_softmax(backend: str, name: str, causal: bool) -> None:
    q, k, v, cu = rows(LENGTHS[name], tail=3, pad=2)
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    expected = reference.attention(*wide, cu, 200, causal)
    half = [t.detach().to("cuda", torch.bfloat16).requires_grad_() for t in (q, k, v)]
    with use_backend("attention", backend):
        found = attention(*half, cu_seqlens=cu.cuda(), max_seqlen=200, causal=causal)
    dy = torch.randn(found.shape, generator=torch.Generator().manual_seed(9))
    pairs = zip(
        (found, *torch.autograd.grad(found, half, dy.to(found))),
        (expected, *torch.autograd.grad(expected, wide, dy.double())),
        strict=True,
    )
    for a, b in pairs:
        # Four roundings to bf16 (2^-8 each) of inputs, weights, gradient and result.
        assert (a.cpu().double() - b).abs().max() <= 4 * 2**-8 * b.abs().max() + 1e-3
        assert a[sum(LENGTHS[name]) :].eq(0).all()


def test_no_document_at_all() -> None:
    q, k, v = (torch.randn(4, h, 8) for h in (2, 1, 1))
    for backend in ("chunked", "reference"):
        with use_backend("attention", backend):
            cu = torch.zeros(3, dtype=torch.int32)
            assert attention(q, k, v, cu_seqlens=cu, max_seqlen=1, causal=True).eq(0).all()


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_decoding_equals_the_full_forward_and_ignores_what_lies_past_the_length(backend: str) -> None:
    q, k, v, cu = (t.detach() for t in rows([12]))
    full = attention(q, k, v, cu_seqlens=cu, max_seqlen=12, causal=True)
    k_cache, v_cache = (torch.full((1, 20, 2, 16), 1e4) for _ in range(2))
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
    with pytest.raises(ValueError, match=r"expected one dtype, got torch.float32, torch.float64"):
        attention(q, k.double(), v.double(), cu_seqlens=cu, max_seqlen=4, causal=True)
    with pytest.raises(ValueError, match=r"q, caches: expected one dtype"):
        attention_decode(q[None], k[None].half(), v[None].half(), lengths=torch.tensor([4]))
    with pytest.raises(ValueError, match="int32"):
        attention(q, k, v, cu_seqlens=cu.long(), max_seqlen=4, causal=True)
    with pytest.raises(ValueError, match="q, caches"):
        attention_decode(q[None], k[None], v[None, :2], lengths=torch.tensor([4]))
    with pytest.raises(ValueError, match="lengths"):
        attention_decode(q[None], k[None], v[None], lengths=torch.tensor([4, 4]))


@pytest.mark.parametrize(
    ("cu_seqlens", "max_seqlen", "match"),
    [
        ([2, 5, 10], 10, "cu_seqlens: expected values rising from 0 to at most 10"),
        ([0, 5, 12], 12, "cu_seqlens: expected values rising from 0 to at most 10"),
        ([0, 6, 4, 10], 10, "cu_seqlens: expected values rising from 0 to at most 10"),
        ([0, 4, 10], 5, "max_seqlen: expected at least the longest document, 6, got 5"),
    ],
)
def test_bounds_that_would_mix_documents_are_named(
    cu_seqlens: list[int], max_seqlen: int, match: str
) -> None:
    q, k, v, _ = rows([10])
    cu = torch.tensor(cu_seqlens, dtype=torch.int32)
    with pytest.raises(ValueError, match=match):
        attention(q, k, v, cu_seqlens=cu, max_seqlen=max_seqlen, causal=True)
