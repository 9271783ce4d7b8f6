"""The row-wise kernels, Triton's in the interpreter or on a GPU and C++'s, against the references in fp64.

Not collected by name: test_triton.py runs the cases_*.py in a process of their own with TRITON_INTERPRET=1, which
must be set before triton is imported; on a GPU they run without. test_row_cpp.py runs these with MUOMNI_CASES=cpp.
"""

import os
from collections.abc import Callable

import pytest
import torch
from functorch.compile import make_boxed_func
from muomni_kernels import (
    add_rms_norm,
    qk_norm_rope,
    reference,
    registry,
    rms_norm,
    rope,
    rowwise,
    swiglu,
    use_backend,
)
from torch._dynamo.backends.common import aot_autograd
from torch.library import opcheck

SHAPES = [(5, 123), (1, 128), (33, 192), (7, 256), (3, 5, 512), (0, 64), (4, 1)]
BACKEND = os.environ.get("MUOMNI_CASES", "triton")
# The interpreter's bf16 is wrong, and C++ has no fp16.
HALF = torch.bfloat16 if BACKEND == "cpp" else torch.float16
DTYPES = [torch.float32, HALF]
Randn = Callable[..., torch.Tensor]
Compare = Callable[..., None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype, randn: Randn, compare: Compare) -> None:
    compare(rms_norm, [randn(*shape, seed=0, dtype=dtype), randn(shape[-1], seed=1, dtype=dtype)], 2)


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (HALF,) * 2, (HALF, torch.float32)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_rms_norm(
    shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], randn: Randn, compare: Compare
) -> None:
    x, residual = (randn(*shape, seed=i, dtype=d) for i, d in enumerate(dtypes))
    compare(add_rms_norm, [x, residual, randn(shape[-1], seed=2, dtype=dtypes[1])], 3)


@pytest.mark.parametrize("used", [0, 1])
def test_add_rms_norm_with_one_output_unused(used: int, randn: Randn, compare: Compare) -> None:
    inputs = [randn(*s, seed=i, dtype=torch.float32) for i, s in enumerate([(9, 64), (9, 64), (64,)])]
    n_grads = 3 if used == 0 else 2
    compare(lambda *leaves: add_rms_norm(*leaves)[used], inputs, n_grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotary", [32, 24])
@pytest.mark.parametrize("shape", [(5, 3, 32), (9, 1, 64), (2, 7, 2, 32), (0, 2, 32)], ids=str)
def test_rope(
    shape: tuple[int, ...], rotary: int, dtype: torch.dtype, randn: Randn, compare: Compare
) -> None:
    angles = randn(*shape[:-2], rotary // 2, seed=1, dtype=torch.float32)
    compare(rope, [randn(*shape, seed=0, dtype=dtype), angles.cos(), angles.sin()], 1)


def qkv_inputs(
    n_tokens: int, heads: tuple[int, int], head_dim: int, randn: Randn, dtype: torch.dtype
) -> list[torch.Tensor]:
    width = (heads[0] + 2 * heads[1]) * head_dim
    weights = [randn(head_dim, seed=i, dtype=dtype) for i in (1, 2)]
    angles = randn(n_tokens, head_dim // 2, seed=3, dtype=torch.float32)
    return [randn(n_tokens, width, seed=0, dtype=dtype), *weights, angles.cos(), angles.sin()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize(
    ("n_tokens", "heads", "head_dim"),
    [(35, (4, 2), 64), (70, (2, 2), 32), (9, (3, 1), 128), (5, (6, 3), 80), (1, (1, 1), 6), (0, (4, 2), 32)],
)
def test_qk_norm_rope(
    n_tokens: int, heads: tuple[int, int], head_dim: int, rotate: bool, dtype: torch.dtype,
    randn: Randn, compare: Compare,
) -> None:  # fmt: skip
    inputs = qkv_inputs(n_tokens, heads, head_dim, randn, dtype)

    def op(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return qk_norm_rope(*leaves, n_heads=heads[0], n_kv_heads=heads[1])

    compare(op, inputs if rotate else inputs[:3], 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 246), (3, 2, 768), (0, 8), (1, 2)], ids=str)
def test_swiglu(shape: tuple[int, ...], dtype: torch.dtype, randn: Randn, compare: Compare) -> None:
    compare(swiglu, [randn(*shape, seed=0, dtype=dtype)], 1)


def test_stride_zero_gradients_and_sliced_inputs(randn: Randn, compare: Compare) -> None:
    f32 = torch.float32
    x, w = randn(6, 256, seed=0, dtype=f32), randn(128, seed=1, dtype=f32)
    compare(rms_norm, [x[:, ::2], w], 2, stride_zero=True)
    compare(add_rms_norm, [x[:, ::2], x.T.contiguous().T[:, 128:], w], 3, stride_zero=True)
    compare(swiglu, [x[::2, 10:110]], 1, stride_zero=True)
    angles = randn(6, 16, seed=1, dtype=f32)
    compare(rope, [x.view(6, 4, 64)[:, 1:3, :40], angles.cos(), angles.sin()], 1, stride_zero=True)
    inputs = qkv_inputs(12, (2, 1), 32, randn, f32)
    sliced = [inputs[0][::2], inputs[1], inputs[2], *(t[::2] for t in inputs[3:])]
    compare(lambda *t: qk_norm_rope(*t, n_heads=2, n_kv_heads=1), sliced, 3, stride_zero=True)


def block(
    x: torch.Tensor, w: torch.Tensor, head_w: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Every row-wise op once: x (6, 64), four heads of 16."""
    q, k, v = qk_norm_rope(rms_norm(x, w), head_w, head_w * 2, cos, sin, n_heads=2, n_kv_heads=1)
    turned = torch.cat([rope(q, cos, sin), k, v], dim=1).flatten(1)
    y, s = add_rms_norm(turned, x, w)
    return swiglu(y) + s[:, :32]


def test_compiled_without_a_break_equals_eager_and_each_operator_is_one_node(randn: Randn) -> None:
    nodes: set[str] = set()

    def record(graph: torch.fx.GraphModule, _: object) -> object:
        nodes.update(str(n.target) for n in graph.graph.nodes if str(n.target).startswith("muomni."))
        return make_boxed_func(graph.forward)

    leaves = [
        randn(*s, seed=i, dtype=torch.float32).requires_grad_() for i, s in enumerate([(6, 64), (64,), (16,)])
    ]
    angles = randn(6, 8, seed=5, dtype=torch.float32)
    with use_backend(None, BACKEND):
        expected = torch.autograd.grad(block(*leaves, angles.cos(), angles.sin()).square().sum(), leaves)
        for backend in ("aot_eager", aot_autograd(fw_compiler=record, bw_compiler=record)):
            compiled = torch.compile(block, fullgraph=True, backend=backend)
            found = torch.autograd.grad(compiled(*leaves, angles.cos(), angles.sin()).square().sum(), leaves)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert nodes == {f"muomni.{name}.default" for name in OPERATORS}


def test_one_tensor_given_twice_gets_both_gradients_also_when_compiled(randn: Randn) -> None:
    x, w = (randn(*s, seed=i, dtype=torch.float32).requires_grad_() for i, s in enumerate([(6, 64), (64,)]))
    head = randn(16, seed=2, dtype=torch.float32).requires_grad_()

    def twice(x: torch.Tensor, w: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        y, s = add_rms_norm(x, x, w)
        q, k, v = qk_norm_rope(y + s, head, head, n_heads=2, n_kv_heads=1)
        return q.square().sum() + k.square().sum() + v.sum()

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    grads = []
    for backend, function in (("reference", twice), (BACKEND, twice), (BACKEND, compiled)):
        with use_backend(None, backend):
            grads.append(torch.autograd.grad(function(x, w, head), (x, w, head)))
    for found in grads[1:]:
        for a, b in zip(found, grads[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


OPERATORS: dict[str, Callable[[Randn], tuple[object, ...]]] = {
    "rms_norm_forward": lambda r: (r(5, 12), r(12), 1e-6, BACKEND),
    "add_rms_norm_forward": lambda r: (r(5, 12), r(5, 12), r(12), 1e-6, BACKEND),
    "rms_norm_backward": lambda r: (r(5, 12), r(5, 12), r(5, 12), r(12), r(5).abs() + 0.5, BACKEND),
    "rope_rotate": lambda r: (r(5, 2, 12), r(5, 4), r(5, 4), True, BACKEND),
    "qk_norm_rope_forward": lambda r: (r(5, 48), r(12), r(12), r(5, 6), r(5, 6), 2, 1, 1e-6, BACKEND),
    "qk_norm_rope_backward": lambda r: (
        r(5, 2, 12),
        r(5, 1, 12),
        r(5, 1, 12),
        r(5, 48),
        r(12),
        r(12),
        r(5, 6),
        r(5, 6),
        1e-6,
        BACKEND,
    ),
    "swiglu_forward": lambda r: (r(5, 12), BACKEND),
    "swiglu_backward": lambda r: (r(5, 6), r(5, 12), BACKEND),
}


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_schema_and_fake_agree_with_the_implementation(
    name: str, strided: bool, randn: Randn
) -> None:
    assert rowwise.operator is not None

    def tensor(*shape: int) -> torch.Tensor:
        if strided:
            return randn(*shape[::-1], seed=0, dtype=torch.float32).permute(*reversed(range(len(shape))))
        return randn(*shape, seed=0, dtype=torch.float32)

    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(getattr(torch.ops.muomni, name).default, OPERATORS[name](tensor), test_utils=checks)


def test_the_optional_tensors_of_an_operator_may_be_missing(randn: Randn) -> None:
    x, w = randn(5, 48, seed=0, dtype=torch.float32), randn(12, seed=1, dtype=torch.float32)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    calls = {
        "rms_norm_backward": (x, None, x, x[0].clone(), x[:, 0].abs(), BACKEND),
        "qk_norm_rope_forward": (x, w, w.clone(), None, None, 2, 1, 1e-6, BACKEND),
    }
    for name, arguments in calls.items():
        opcheck(getattr(torch.ops.muomni, name).default, arguments, test_utils=checks)


@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "rope", "qk_norm_rope", "swiglu"])
def test_a_second_derivative_raises(name: str, randn: Randn) -> None:
    x = randn(6, 2, 8, seed=0, dtype=torch.float32).requires_grad_()
    ones = torch.ones(8, device=x.device)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "rms_norm": lambda: rms_norm(x, ones),
        "add_rms_norm": lambda: add_rms_norm(x, x.detach(), ones)[0],
        "rope": lambda: rope(x, ones[:4].expand(6, 4), ones[:4].expand(6, 4)),
        "qk_norm_rope": lambda: qk_norm_rope(x.reshape(4, 24), ones, ones, n_heads=1, n_kv_heads=1)[0],
        "swiglu": lambda: swiglu(x),
    }
    with use_backend(name, BACKEND):
        (dx,) = torch.autograd.grad(calls[name]().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.skipif(BACKEND != "triton", reason="C++ has no fp16")
def test_large_values_do_not_overflow_fp16(randn: Randn) -> None:
    x = randn(3, 128, seed=0, dtype=torch.float16) * 7.5e3
    ones = torch.ones(128, dtype=torch.float16, device=x.device)
    with use_backend("rms_norm", "triton"):
        y = rms_norm(x, ones)
    assert torch.isfinite(y).all()
    assert (y.double() - reference.rms_norm(x.double(), ones.double(), 1e-6)).abs().max() < 4e-3


def test_the_same_call_twice_gives_the_same_bits(randn: Randn) -> None:
    leaves = [
        randn(*s, seed=i, dtype=torch.float32).requires_grad_()
        for i, s in enumerate([(96, 64), (64,), (16,)])
    ]
    angles = randn(96, 8, seed=5, dtype=torch.float32)
    with use_backend(None, BACKEND):
        a, b = (
            torch.autograd.grad(block(*leaves, angles.cos(), angles.sin()).square().sum(), leaves)
            for _ in range(2)
        )
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_the_kernel_comes_before_the_reference(randn: Randn) -> None:
    x = randn(2, 64, seed=0, dtype=torch.float32)
    run = {row.name: row.run for row in registry.backends("rms_norm")}
    assert list(run) == ["triton", "cpp", "reference"]
    assert registry.select("rms_norm", x, x[0], 1e-6) is run[BACKEND]
