"""Attention: every backend against the explicit softmax in fp64, isolation of documents, windows, decoding.

FlashAttention cannot run on a CPU: what is passed to it, and what is made of its results, is tested with a stand-in.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from muomni_kernels import attend_flash, attention, attention_decode, reference, use_backend

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


def outputs_and_gradients(leaves: list[torch.Tensor], out: torch.Tensor) -> list[torch.Tensor]:
    dy = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [out, *torch.autograd.grad(out, leaves, dy.to(out.dtype))]


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("backend", ["chunked", "sdpa_mask"])
def test_forward_and_gradients_match_the_explicit_softmax(
    backend: str, name: str, causal: bool, window: int | None
) -> None:
    q, k, v, cu = rows(LENGTHS[name], tail=3, pad=2)
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v)]
    expected = outputs_and_gradients(leaves, reference.attention(*leaves, cu, 200, causal, window))
    with use_backend("attention", backend):
        out = attention(*leaves, cu_seqlens=cu, max_seqlen=200, causal=causal, window=window)
        narrow = attention(q, k, v, cu_seqlens=cu, max_seqlen=200, causal=causal, window=window)
    assert out[sum(LENGTHS[name]) :].eq(0).all(), "rows of no document give zeros"
    for a, b in zip(outputs_and_gradients(leaves, out), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    for a, b in zip(outputs_and_gradients([q, k, v], narrow), expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_the_reference_are_those_of_finite_differences(causal: bool, window: int | None) -> None:
    q, k, v, cu = rows([3, 5], tail=1)
    leaves = [t.detach().double()[:, :, :4].clone().requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *t: reference.attention(*t, cu, 5, causal, window), leaves)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_shows_a_row_its_neighbours_up_to_its_width_less_one(causal: bool) -> None:
    # Keys are equal, so every visible row weighs the same: values of powers of two spell out which are seen.
    v = (2.0 ** torch.arange(8, dtype=torch.float64)).view(8, 1, 1)
    same, cu = torch.ones_like(v), torch.tensor([0, 6, 8], dtype=torch.int32)
    seen = [[j for j in range(6) if abs(i - j) < 3 and (j <= i or not causal)] for i in range(6)]
    for backend in ("chunked", "sdpa_mask", "reference"):
        with use_backend("attention", backend):
            out = attention(same, same, v, cu_seqlens=cu, max_seqlen=6, causal=causal, window=3).flatten()
        expected = [sum(2.0**j for j in row) / len(row) for row in seen]
        torch.testing.assert_close(out[:6], torch.tensor(expected, dtype=torch.float64))


def test_a_window_as_wide_as_the_longest_document_changes_no_bit() -> None:
    q, k, v, cu = (t.detach() for t in rows([5, 17]))
    wide, none = (
        attention(q, k, v, cu_seqlens=cu, max_seqlen=17, causal=True, window=window) for window in (17, None)
    )
    assert torch.equal(wide, none)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("causal", [True, False])
def test_compiled_without_a_break_equals_eager(causal: bool, window: int | None) -> None:
    q, k, v, cu = rows([5, 30, 17], tail=2, pad=1)

    def op(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q, k, v, cu_seqlens=cu, max_seqlen=30, causal=causal, window=window)

    with use_backend("attention", "sdpa_mask"):
        expected = outputs_and_gradients([q, k, v], op(q, k, v))
    # Not forced: what cannot be traced steps back by itself.
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    found = outputs_and_gradients([q, k, v], compiled(q, k, v))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


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


class Kernel(torch.autograd.Function):
    """What the CUDA kernels do: right inside the documents, anything in the rows of none."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, cu: Any, causal: bool, window: int | None) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.rest = (cu, 200, causal, window)
        out = reference.attention(q, k, v, *ctx.rest)
        out[cu[-1] :] = torch.nan
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cu = ctx.rest[0]
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            found = torch.autograd.grad(reference.attention(*leaves, *ctx.rest), leaves, grads[0])
        for t in found:
            t[cu[-1] :] = torch.nan
        return *found, None, None, None


def stand_in(features: set[str], calls: list[dict[str, Any]]) -> Any:
    """varlen_attn of a torch that takes these options; it gives right results for what it is told."""

    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: Any, cu_k: Any, *sizes: int, **options: Any
    ) -> torch.Tensor:
        assert cu_q is cu_k and sizes == (200, 200) and options.keys() <= features
        assert q.shape[1] == k.shape[1] or options.get("enable_gqa"), "keys are not repeated"
        calls.append(options)
        left, right = options.get("window_size", (-1, 0 if options.get("is_causal") else -1))
        return Kernel.apply(q, k, v, cu_q, right == 0, None if left < 0 else left + 1)

    return kernel


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "features", [{"is_causal"}, {"window_size"}, {"window_size", "enable_gqa"}], ids=["2.10", "2.11", "2.12"]
)
def test_varlen_speaks_to_every_torch_and_hides_what_the_kernel_leaves_unwritten(
    features: set[str], causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(attend_flash, "varlen_attn", stand_in(features, calls))
    monkeypatch.setattr(attend_flash, "_VARLEN", frozenset(features))
    q, k, v, cu = rows([5, 130, 17], tail=9, pad=2)
    if window is not None and "window_size" not in features:
        reason = attend_flash.varlen_supports(q, k, v, cu, 200, causal, window)
        assert reason == "this torch's varlen_attn has no window_size"
        return
    found = attend_flash.varlen(q, k, v, cu, 200, causal, window)
    expected = reference.attention(q, k, v, cu, 200, causal, window)
    for a, b in zip(
        outputs_and_gradients([q, k, v], found), outputs_and_gradients([q, k, v], expected), strict=True
    ):
        torch.testing.assert_close(a, b)
    reach = -1 if window is None else window - 1
    sides = (reach, 0 if causal else reach)
    wanted = {"is_causal": causal, "window_size": sides, "enable_gqa": True}
    assert calls == [{name: wanted[name] for name in features}]


@pytest.mark.parametrize("features", [{"window_size"}, {"window_size", "enable_gqa"}], ids=["2.11", "2.12"])
def test_varlen_is_traced_without_a_break(features: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(q: Any, k: Any, v: Any, *_: Any, window_size: Any, enable_gqa: bool = False) -> torch.Tensor:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=enable_gqa).transpose(0, 1)

    monkeypatch.setattr(attend_flash, "varlen_attn", kernel)
    monkeypatch.setattr(attend_flash, "_VARLEN", frozenset(features))
    q, k, v, cu = rows([12])

    def op(*leaves: torch.Tensor) -> torch.Tensor:
        return attend_flash.varlen(*leaves, cu, 12, True)

    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    found, expected = (outputs_and_gradients([q, k, v], f(q, k, v)) for f in (compiled, op))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("causal", "window", "sides"),
    [(True, None, (-1, 0)), (True, 9, (8, 0)), (False, None, (-1, -1)), (False, 9, (8, 8))],
)
def test_flash_is_told_the_same_and_its_unwritten_rows_are_hidden(
    causal: bool, window: int | None, sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def kernel(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, *sizes: int, **options: Any) -> torch.Tensor:
        assert cu_q is cu_k and sizes == (200, 200) and k.shape[1] == 2, "grouped keys stay as they are"
        calls.append(options)
        return Kernel.apply(q, k, v, cu_q, options["causal"], window)

    monkeypatch.setattr(attend_flash, "flash_attn", SimpleNamespace(flash_attn_varlen_func=kernel))
    q, k, v, cu = rows([5, 130, 17], tail=9, pad=2)
    found = attend_flash.flash(q, k, v, cu, 200, causal, window)
    expected = reference.attention(q, k, v, cu, 200, causal, window)
    for a, b in zip(
        outputs_and_gradients([q, k, v], found), outputs_and_gradients([q, k, v], expected), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert calls == [{"causal": causal, "window_size": sides, "deterministic": False}]


def test_flash_decodes_with_the_lengths_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(q: Any, k: Any, v: Any, *, cache_seqlens: Any, causal: bool, window_size: Any) -> Any:
        assert causal and window_size == (4, 0) and cache_seqlens.dtype == torch.int32
        return reference.attention_decode(q, k, v, cache_seqlens, window_size[0] + 1)

    monkeypatch.setattr(attend_flash, "flash_attn", SimpleNamespace(flash_attn_with_kvcache=kernel))
    q, k, v = (torch.randn(2, n, h, 16) for n, h in ((1, 4), (9, 2), (9, 2)))
    lengths = torch.tensor([9, 3])
    found = attend_flash.decode(q, k, v, lengths, 5)
    assert torch.equal(found, reference.attention_decode(q, k, v, lengths, 5))


def test_reasons_against_flash_attention() -> None:
    q, k, v, cu = rows([4])
    assert attend_flash.varlen_features(None) == frozenset()
    assert attend_flash.varlen_features(lambda q, is_causal: None) == {"is_causal"}
    assert attend_flash.varlen_features(lambda q, window_size, enable_gqa, scale: None) == {
        "window_size",
        "enable_gqa",
    }
    assert attend_flash.reason_against_package(SimpleNamespace(__version__="2.7.4.post1")) is None
    old = SimpleNamespace(__version__="2.6.3")
    assert attend_flash.reason_against_package(old) == "needs flash-attn 2.7, found 2.6.3"
    assert attend_flash.flash_supports(q, k, v, cu, 4, True, None) == "needs a CUDA tensor, got cpu"
    lengths = torch.tensor([4])
    assert attend_flash.decode_supports(q[None], k[None], v[None], lengths, None) == "gives no gradient"
    with torch.no_grad():
        reason = attend_flash.decode_supports(q[None], k[None], v[None], lengths, None)
    assert reason == "needs a CUDA tensor, got cpu"


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


def test_no_document_at_all() -> None:
    q, k, v = (torch.randn(4, h, 8) for h in (2, 1, 1))
    for backend in ("chunked", "reference"):
        with use_backend("attention", backend):
            cu = torch.zeros(3, dtype=torch.int32)
            assert attention(q, k, v, cu_seqlens=cu, max_seqlen=1, causal=True).eq(0).all()


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_decoding_equals_the_full_forward_and_ignores_what_lies_past_the_length(
    backend: str, window: int | None
) -> None:
    q, k, v, cu = (t.detach() for t in rows([12]))
    full = attention(q, k, v, cu_seqlens=cu, max_seqlen=12, causal=True, window=window)
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
                q[None, done - count : done],
                k_cache,
                v_cache,
                lengths=torch.tensor([done]),
                window=window,
            )
            torch.testing.assert_close(out[0], full[done - count : done], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_queries", [1, 2])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_decoding_rows_of_different_lengths_equals_each_alone(
    backend: str, window: int | None, n_queries: int
) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(3, n, h, 16, generator=generator) for n, h in ((n_queries, 4), (9, 2), (9, 2)))
    lengths = torch.tensor([9, 4, 2])
    with use_backend("attention_decode", backend):
        together = attention_decode(q, k, v, lengths=lengths, window=window)
        for row in range(3):
            n = int(lengths[row])
            one = slice(row, row + 1)
            alone = attention_decode(q[one], k[one, :n], v[one, :n], lengths=lengths[one], window=window)
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
    with pytest.raises(ValueError, match=r"lengths: expected .* int32 or int64"):
        attention_decode(q[None], k[None], v[None], lengths=torch.tensor([4.0]))
    with pytest.raises(ValueError, match="q, caches"):
        attention_decode(q[None], k[None, ..., :8], v[None, ..., :8], lengths=torch.tensor([4]))
    with pytest.raises(ValueError, match="q: expected a floating-point dtype"):
        attention(q.long(), k.long(), v.long(), cu_seqlens=cu, max_seqlen=4, causal=True)
    with pytest.raises(ValueError, match="max_seqlen: expected at least 1, got 0"):
        attention(q, k, v, cu_seqlens=cu, max_seqlen=0, causal=True)
    with pytest.raises(ValueError, match="cu_seqlens: expected q's device cpu, got meta"):
        attention(q, k, v, cu_seqlens=cu.to("meta"), max_seqlen=4, causal=True)
    with pytest.raises(ValueError, match="k_cache: expected a number of heads that divides 4, got 3"):
        attention_decode(q[None], k[None, :, [0, 1, 1]], v[None, :, [0, 1, 1]], lengths=torch.tensor([4]))
    with pytest.raises(ValueError, match="window: expected at least 1, or None for no limit, got 0"):
        attention(q, k, v, cu_seqlens=cu, max_seqlen=4, causal=True, window=0)
    with pytest.raises(ValueError, match="window: expected at least 1"):
        attention_decode(q[None], k[None], v[None], lengths=torch.tensor([4]), window=-1)


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


@pytest.mark.parametrize("lengths", [[-3, 4], [0, 4], [2, 5]])
def test_decode_refuses_lengths_that_are_not_in_the_cache(lengths: list[int]) -> None:
    q, cache = torch.zeros(2, 1, 2, 8), torch.zeros(2, 4, 2, 8)
    with pytest.raises(ValueError, match=r"lengths: expected 1 \(the new queries\) to 4 \(the caches\), got"):
        attention_decode(q, cache, cache, lengths=torch.tensor(lengths))
