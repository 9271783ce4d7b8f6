"""RMSNorm, RoPE and SwiGLU: the references against closed forms in fp64, the checks, the operators."""

import math

import muomni_kernels
import pytest
import torch
from functorch.compile import make_boxed_func
from muomni_kernels import library, ops, reference, rms_norm, rope, swiglu
from torch._dynamo.backends.common import aot_autograd
from torch.library import opcheck


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


@pytest.mark.parametrize("name", ["rms_norm", "rope", "swiglu"])
def test_reference_gradients(name: str) -> None:
    x = randn(3, 2, 8).requires_grad_()
    if name == "rms_norm":
        w = randn(8, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b), (x, w))
    elif name == "rope":
        angles = randn(3, 3)
        assert torch.autograd.gradcheck(lambda a: rope(a, angles.cos(), angles.sin()), (x,))
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


def test_wrong_shapes_say_what_came_and_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"weight: expected \(8,\) for x \(2, 8\), got \(7,\)"):
        rms_norm(torch.zeros(2, 8), torch.ones(7))
    with pytest.raises(ValueError, match="cos, sin: expected"):
        rope(torch.zeros(4, 2, 8), torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="even last dimension"):
        swiglu(torch.zeros(3, 5))
    with pytest.raises(AttributeError, match="it offers"):
        _ = muomni_kernels.nothing


OPERATORS = {
    "rms_norm_forward": lambda: (torch.randn(5, 12), torch.randn(12), 1e-6),
    "rms_norm_backward": lambda: (
        torch.randn(5, 12),
        torch.randn(5, 12),
        torch.randn(12),
        torch.rand(5) + 0.5,
    ),
    "rope_rotate": lambda: (torch.randn(5, 2, 12), torch.randn(5, 4), torch.randn(5, 4), True),
    "swiglu_forward": lambda: (torch.randn(5, 12),),
    "swiglu_backward": lambda: (torch.randn(5, 6), torch.randn(5, 12)),
}
STRIDED = {
    "rms_norm_forward": lambda: (torch.randn(12, 5).t(), torch.randn(24)[::2], 1e-6),
    "rms_norm_backward": lambda: (
        torch.randn(5, 1).expand(5, 12),
        torch.randn(12, 5).t(),
        torch.randn(12),
        torch.rand(5) + 0.5,
    ),
    "rope_rotate": lambda: (
        torch.randn(2, 5, 12).transpose(0, 1),
        torch.randn(4, 5).t(),
        torch.randn(4, 5).t(),
        False,
    ),
    "swiglu_forward": lambda: (torch.randn(12, 5).t(),),
    "swiglu_backward": lambda: (torch.randn(5, 1).expand(5, 6), torch.randn(12, 5).t()),
}


@pytest.mark.parametrize("inputs", [OPERATORS, STRIDED], ids=["contiguous", "strided"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_schema_and_fake_agree_with_the_implementation(name: str, inputs: dict) -> None:
    assert library is not None
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(getattr(torch.ops.muomni, name).default, inputs[name](), test_utils=checks)


def test_closed_form_backwards_equal_autograd_of_the_reference() -> None:
    x, w, dy = randn(5, 12).requires_grad_(), randn(12, seed=1).requires_grad_(), randn(5, 12, seed=2)
    expected = torch.autograd.grad(reference.rms_norm(x, w, 1e-6), (x, w), dy)
    _, rstd = library.rms_norm_forward(x.detach().float(), w.detach().float(), 1e-6)
    found = library.rms_norm_backward(dy.float(), x.detach().float(), w.detach().float(), rstd)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    g = randn(5, 12).requires_grad_()
    (expected_g,) = torch.autograd.grad(reference.swiglu(g), g, dy[:, :6])
    found_g = library.swiglu_backward(dy[:, :6].float(), g.detach().float())
    torch.testing.assert_close(found_g.double(), expected_g, rtol=1e-5, atol=1e-5)


def operator_block(x: torch.Tensor, w: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """What the Triton backend runs, on the operators' closed forms where there is no GPU."""
    turned = ops._Rope.apply(ops._RMSNorm.apply(x, w, 1e-6), cos, sin)
    return ops._SwiGLU.apply(turned.flatten(1))


def test_compiled_operators_are_one_node_each_forward_and_backward() -> None:
    nodes: set[str] = set()

    def record(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        nodes.update(str(n.target) for n in graph.graph.nodes if str(n.target).startswith("muomni."))
        return make_boxed_func(graph.forward)

    x, w = torch.randn(6, 2, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    angles = torch.randn(6, 4)
    backend = aot_autograd(fw_compiler=record, bw_compiler=record)
    compiled = torch.compile(operator_block, fullgraph=True, backend=backend)
    reference_block = swiglu(rope(rms_norm(x, w), angles.cos(), angles.sin()).flatten(1))
    found = torch.autograd.grad(compiled(x, w, angles.cos(), angles.sin()).square().sum(), (x, w))
    for a, b in zip(found, torch.autograd.grad(reference_block.square().sum(), (x, w)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert nodes == {f"muomni.{name}.default" for name in OPERATORS}


@pytest.mark.parametrize("name", ["rms_norm", "rope", "swiglu"])
def test_a_second_derivative_of_an_operator_raises(name: str) -> None:
    x = torch.randn(6, 2, 8, requires_grad=True)
    calls = {
        "rms_norm": lambda: ops._RMSNorm.apply(x, torch.ones(8), 1e-6),
        "rope": lambda: ops._Rope.apply(x, torch.ones(6, 4), torch.zeros(6, 4)),
        "swiglu": lambda: ops._SwiGLU.apply(x),
    }
    (dx,) = torch.autograd.grad(calls[name]().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


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
