"""The row-wise ops: the references against closed forms in fp64, and the checks."""

import math
from collections.abc import Callable

import muomni_kernels
import pytest
import torch
from muomni_kernels import add_rms_norm, qk_norm_rope, reference, rms_norm, rope, swiglu


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_rms_norm_row_by_row() -> None:
    x, w = randn(5, 123), randn(123, seed=1)
    y = rms_norm(x, w, eps=1e-5)
    for row in range(5):
        scale = math.sqrt(sum(v * v for v in x[row].tolist()) / 123 + 1e-5)
        expected = torch.tensor([v / scale * u for v, u in zip(x[row].tolist(), w.tolist(), strict=True)])
        torch.testing.assert_close(y[row], expected.double(), rtol=1e-6, atol=1e-7)


def test_rope_is_a_rotation_of_complex_pairs_and_depends_on_distance_only() -> None:
    angles = randn(7, 4) * 3
    q = randn(7, 2, 10)
    turned = rope(q, angles.cos(), angles.sin())
    pairs = torch.complex(q[..., :4], q[..., 4:8]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(turned[..., :8], torch.cat((pairs.real, pairs.imag), -1))
    assert torch.equal(turned[..., 8:], q[..., 8:]), "features past the rotary width pass through"
    frequency = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    a, b = randn(1, 1, 8, seed=2), randn(1, 1, 8, seed=3)

    def at(x: torch.Tensor, position: int) -> torch.Tensor:
        angle = (position * frequency)[None]
        return rope(x, angle.cos(), angle.sin())

    near = (at(a, 3) * at(b, 1)).sum()
    torch.testing.assert_close(near, (at(a, 103) * at(b, 101)).sum())


def test_swiglu_closed_form() -> None:
    x = randn(3, 4, 10)
    g, u = x[..., :5], x[..., 5:]
    torch.testing.assert_close(swiglu(x), g / (1 + torch.exp(-g)) * u)


def test_add_rms_norm_is_the_sum_and_its_norm_each_in_its_own_dtype() -> None:
    x, r, w = randn(5, 12), randn(5, 12, seed=1), randn(12, seed=2)
    y, s = add_rms_norm(x, r, w)
    assert torch.equal(s, x + r) and torch.equal(y, rms_norm(x + r, w))
    y, s = add_rms_norm(x.bfloat16(), r.float(), w.float())
    assert (y.dtype, s.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(s, x.bfloat16().float() + r.float())


@pytest.mark.parametrize("rotate", [True, False])
def test_qk_norm_rope_is_split_norm_and_rotation_of_every_head(rotate: bool) -> None:
    qkv, q_weight, k_weight = randn(7, 8 * 6), randn(6, seed=1), randn(6, seed=2)
    angles = randn(7, 3, seed=3)
    tables = (angles.cos(), angles.sin()) if rotate else ()
    q, k, v = qk_norm_rope(qkv, q_weight, k_weight, *tables, n_heads=4, n_kv_heads=2)
    assert q.shape == (7, 4, 6) and k.shape == v.shape == (7, 2, 6)
    heads = list(zip([*q.unbind(1), *k.unbind(1)], qkv.split(6, dim=1), strict=False))
    for i, (found, x) in enumerate(heads):
        n = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (q_weight if i < 4 else k_weight)
        if rotate:
            turned = torch.complex(n[:, :3], n[:, 3:]) * torch.polar(torch.ones_like(angles), angles)
            n = torch.cat((turned.real, turned.imag), -1)
        torch.testing.assert_close(found, n)
    assert torch.equal(v.flatten(1), qkv[:, 36:])


@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "rope", "qk_norm_rope", "swiglu"])
def test_reference_gradients(name: str) -> None:
    x, w = randn(3, 2, 8).requires_grad_(), randn(8, seed=1).requires_grad_()
    angles = randn(3, 3)
    cos, sin = angles.cos(), angles.sin()
    if name == "rms_norm":
        assert torch.autograd.gradcheck(rms_norm, (x, w))
    elif name == "add_rms_norm":
        assert torch.autograd.gradcheck(add_rms_norm, (x, randn(3, 2, 8, seed=2).requires_grad_(), w))
    elif name == "rope":
        assert torch.autograd.gradcheck(lambda a: rope(a, cos, sin), (x,))
    elif name == "qk_norm_rope":
        leaves = (randn(3, 24).requires_grad_(), *(randn(6, seed=i).requires_grad_() for i in (1, 2)))
        assert torch.autograd.gradcheck(
            lambda *t: qk_norm_rope(*t, cos, sin, n_heads=2, n_kv_heads=1), leaves
        )
    else:
        assert torch.autograd.gradcheck(swiglu, (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_fp32(dtype: torch.dtype) -> None:
    x, w = randn(4, 64, dtype=dtype) * 100, randn(64, seed=1, dtype=dtype)
    expected = reference.rms_norm(x.double(), w.double(), 1e-6)
    error = (rms_norm(x, w).double() - expected).abs().max() / expected.abs().max()
    assert rms_norm(x, w).dtype == dtype
    assert error <= torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (1, 8)])
def test_empty_and_single_rows(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, requires_grad=True)
    w = torch.ones(8, requires_grad=True)
    y = rms_norm(x, w)
    y.sum().backward()
    assert y.shape == x.shape and x.grad is not None and w.grad is not None
    assert swiglu(x).shape == (*shape[:-1], 4)


BAD: dict[str, tuple[str, Callable[[], object]]] = {
    "width": (r"weight: expected \(8,\) for x \(2, 8\), got \(7,\)", lambda: rms_norm(z(2, 8), z(7))),
    "rank": (r"weight: expected \(\?,\)", lambda: rms_norm(z(), z(7))),
    "norm dtype": (
        "x: expected a floating-point dtype, got torch.int64",
        lambda: rms_norm(z(2, 8).long(), z(8)),
    ),
    "norm device": ("weight: expected x's device cpu, got meta", lambda: rms_norm(z(2, 8), z(8).to("meta"))),
    "residual": ("residual: expected x's shape", lambda: add_rms_norm(z(2, 8), z(1, 8), z(8))),
    "residual device": (
        "residual: expected x's device cpu, got meta",
        lambda: add_rms_norm(z(2, 8), z(2, 8).to("meta"), z(8)),
    ),
    "angles": ("cos, sin: expected", lambda: rope(z(4, 2, 8), z(3, 4), z(3, 4))),
    "rope rank": ("cos, sin: expected", lambda: rope(z(4), z(3, 4), z(3, 4))),
    "rope device": ("sin: expected x's device", lambda: rope(z(4, 2, 8), z(4, 4), z(4, 4).to("meta"))),
    "rope dtype": ("cos: expected a floating", lambda: rope(z(4, 2, 8), z(4, 4).int(), z(4, 4))),
    "heads": (
        "n_kv_heads: expected a number that divides",
        lambda: qkv(z(4, 48), z(6), n_heads=4, n_kv_heads=3),
    ),
    "packed width": (
        r"qkv: expected \(T, \(4 \+ 2 \* 2\) \* 6\), got \(4, 47\)",
        lambda: qkv(z(4, 47), z(6)),
    ),
    "odd head": ("even D, got", lambda: qkv(z(4, 40), z(5))),
    "weights": (
        "q_weight, k_weight: expected",
        lambda: qk_norm_rope(z(4, 48), z(6), z(5), n_heads=4, n_kv_heads=2),
    ),
    "one angle": ("cos, sin: expected both", lambda: qkv(z(4, 48), z(6), z(4, 3))),
    "angle rows": (r"cos: expected \(4, 3\)", lambda: qkv(z(4, 48), z(6), z(5, 3), z(5, 3))),
    "qkv dtype": ("qkv: expected a floating", lambda: qkv(z(4, 48).int(), z(6))),
    "qkv device": ("q_weight: expected qkv's device meta", lambda: qkv(z(4, 48).to("meta"), z(6))),
    "eps": ("eps: expected a number of at least 0", lambda: rms_norm(z(2, 8), z(8), eps=-1.0)),
    "sin dtype": ("sin: expected a floating", lambda: rope(z(4, 2, 8), z(4, 4), z(4, 4).int())),
    "head weight dtype": ("q_weight: expected a floating", lambda: qkv(z(4, 48), z(6).int())),
    "angle dtype": ("cos: expected a floating", lambda: qkv(z(4, 48), z(6), z(4, 3).int(), z(4, 3))),
    "odd width": ("even last dimension", lambda: swiglu(z(3, 5))),
    "swiglu dtype": ("gate_up: expected a floating", lambda: swiglu(z(3, 6).int())),
}


def z(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def qkv(
    packed: torch.Tensor, weight: torch.Tensor, *angles: torch.Tensor, n_heads: int = 4, n_kv_heads: int = 2
):
    return qk_norm_rope(packed, weight, weight, *angles, n_heads=n_heads, n_kv_heads=n_kv_heads)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument(name: str) -> None:
    message, call = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unknown_op_is_told_what_there_is() -> None:
    with pytest.raises(AttributeError, match="it offers"):
        _ = muomni_kernels.nothing


def test_compiled_graph_has_no_break_and_equals_eager() -> None:
    def block(x: torch.Tensor, w: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return swiglu(rope(rms_norm(x, w), cos, sin).flatten(1))

    x, w = torch.randn(6, 2, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    angles = torch.randn(6, 4)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    a = torch.autograd.grad(compiled(x, w, angles.cos(), angles.sin()).square().sum(), (x, w))
    b = torch.autograd.grad(block(x, w, angles.cos(), angles.sin()).square().sum(), (x, w))
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other)
