"""Every op on a GPU: parity at model shapes, bits, unwritten memory, graphs, host syncs, torch.compile, large tensors.

The small and odd shapes are in cases_*.py, which test_triton.py runs on the GPU too. To check these tests
themselves without a GPU: MUOMNI_GPU_TESTS_DEVICE=cpu runs every body on the CPU, at small shapes and on whatever
backends run there, with TRITON_INTERPRET=1 on the Triton kernels; what only CUDA has (graphs, sync checks) is then
a plain call.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import muomni_kernels as ops
import pytest
import torch
from muomni_kernels import triton_support, use_backend
from torch.utils.checkpoint import checkpoint

DEVICE = os.environ.get("MUOMNI_GPU_TESTS_DEVICE", "cuda")
CUDA = DEVICE == "cuda"
ROWS = 16_384 if CUDA else 96
DOCUMENT = 512 if CUDA else 24
VOCAB = 4096 if CUDA else 64
HALF = torch.float16 if triton_support.interpreting() else torch.bfloat16
"""The interpreter truncates where bf16 should be rounded."""
DTYPES = [torch.float32, HALF, *({torch.float16} - {HALF})]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Tensors = tuple[torch.Tensor, ...]
Close = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


class Op(NamedTuple):
    """An op with inputs of a model's shape."""

    name: str
    call: Callable[..., torch.Tensor | Tensors]
    make: Callable[[torch.dtype], list[torch.Tensor]]
    """Its tensors; those that get gradients come first."""
    n_grads: int
    same_bits: bool = True
    """Promised to give the same bits each time, gradients included; integers always are the same."""
    triton: bool = True
    exact: bool = True
    """As exact as the reference, whose inside is fp32; vq_nearest is judged below, attention in its own file."""


def angles(rows: int, half: int) -> list[torch.Tensor]:
    angle = rand(rows, half, seed=7)
    return [angle.cos(), angle.sin()]


def documents() -> torch.Tensor:
    """Bounds of documents of unlike lengths up to DOCUMENT; the last rows belong to none."""
    bounds, n = [0], 0
    while bounds[-1] + DOCUMENT < ROWS:
        bounds.append(bounds[-1] + DOCUMENT - (37 * n) % (DOCUMENT - 1))
        n += 1
    return torch.tensor([*bounds, bounds[-1]], dtype=torch.int32).to(DEVICE)


def clips() -> torch.Tensor:
    """The same, but for the last clip, which ends with the last row."""
    return torch.cat((documents()[:-1], torch.tensor([ROWS], dtype=torch.int32).to(DEVICE)))


def labels(*shape: int, classes: int) -> torch.Tensor:
    drawn = torch.randint(classes, shape, generator=torch.Generator().manual_seed(3))
    drawn[::5] = -100
    return drawn.to(DEVICE)


OPS = {
    "rms_norm": Op(
        "rms_norm", ops.rms_norm, lambda d: [rand(ROWS, 256, dtype=d), rand(256, seed=1)], n_grads=2
    ),
    "add_rms_norm": Op(
        "add_rms_norm",
        ops.add_rms_norm,
        lambda d: [rand(ROWS, 256, dtype=d), rand(ROWS, 256, seed=1), rand(256, seed=2)],
        n_grads=3,
    ),
    "rope": Op("rope", ops.rope, lambda d: [rand(ROWS, 4, 64, dtype=d), *angles(ROWS, 32)], n_grads=1),
    "qk_norm_rope": Op(
        "qk_norm_rope",
        lambda *t: ops.qk_norm_rope(*t, n_heads=4, n_kv_heads=2),
        lambda d: [rand(ROWS, 512, dtype=d), rand(64, seed=1), rand(64, seed=2), *angles(ROWS, 32)],
        n_grads=3,
    ),
    "swiglu": Op("swiglu", ops.swiglu, lambda d: [rand(ROWS, 1536, dtype=d)], n_grads=1),
    "linear_cross_entropy": Op(
        "linear_cross_entropy",
        lambda x, w, y: ops.linear_cross_entropy(x, w, y),
        lambda d: [rand(ROWS, 256, dtype=d), rand(VOCAB, 256, seed=1) / 16, labels(ROWS, classes=VOCAB)],
        n_grads=2,
    ),
    "linear_cross_entropy_heads": Op(
        "linear_cross_entropy",
        lambda x, w, b, y: ops.linear_cross_entropy(
            x, w, y, bias=b, label_smoothing=0.1, z_loss=1e-4, softcap=20.0
        ),
        lambda d: [
            rand(ROWS // 8, 8, 64, dtype=d),
            rand(8, VOCAB // 4, 64, seed=1) / 8,
            rand(8, VOCAB // 4, seed=2) / 8,
            labels(ROWS // 8, 8, classes=VOCAB // 4),
        ],
        n_grads=3,
    ),
    "vq_nearest": Op(
        "vq_nearest",
        lambda codebooks, z: ops.vq_nearest(z, codebooks)[::-1],
        lambda d: [rand(8, VOCAB // 4, 64, seed=1) / 4, rand(ROWS, 64, dtype=d)],
        n_grads=1,
        same_bits=False,
        exact=False,
    ),
    "mel_downsample": Op(
        "mel_downsample",
        lambda frames, cu: ops.mel_downsample(frames, mode="max", cu_frames=cu, n_rows=ROWS // 8 + 64),
        lambda d: [rand(ROWS, 128, dtype=d), clips()],
        n_grads=1,
    ),
    "mel_downsample_windows": Op(
        "mel_downsample",
        lambda frames, cu: ops.mel_downsample(
            frames, factor=6, window=7, lead=3, edge="repeat", cu_frames=cu, n_rows=ROWS // 6 + 64
        ),
        lambda d: [rand(ROWS, 128, dtype=d), clips()],
        n_grads=1,
    ),
    "mel_downsample_padded": Op(
        "mel_downsample",
        lambda frames, lengths: ops.mel_downsample(frames, mode="mean", lengths=lengths),
        lambda d: [rand(8, DOCUMENT, 128, dtype=d), torch.arange(8).to(DEVICE) * DOCUMENT // 7],
        n_grads=1,
    ),
    "attention": Op(
        "attention",
        lambda q, k, v, cu: ops.attention(q, k, v, cu_seqlens=cu, max_seqlen=DOCUMENT, causal=True),
        lambda d: [*(rand(ROWS, h, 64, seed=h, dtype=d) for h in (4, 2, 2)), documents()],
        n_grads=3,
        same_bits=False,
        triton=False,
        exact=False,
    ),
    "attention_decode": Op(
        "attention_decode",
        lambda q, k, v, n: ops.attention_decode(q, k, v, lengths=n, window=100),
        lambda d: [
            *(rand(8, t, h, 64, seed=t, dtype=d) for t, h in ((1, 4), (DOCUMENT, 2), (DOCUMENT, 2))),
            torch.arange(8, dtype=torch.int32).to(DEVICE) + 9,
        ],
        n_grads=0,
        same_bits=False,
        triton=False,
        exact=False,
    ),
}
OPS_WITH_GRADS = [name for name, op in OPS.items() if op.n_grads]


def kernels_of(op: Op) -> AbstractContextManager[None]:
    """Forces the Triton kernel where Triton runs; attention takes the backend this machine would choose."""
    runs = op.triton and triton_support.available() is None
    return use_backend(op.name, "triton") if runs else nullcontext()


def run(
    op: Op, leaves: list[torch.Tensor], call: Callable[..., torch.Tensor | Tensors] | None = None
) -> list[torch.Tensor]:
    """Outputs and gradients, the latter for fixed gradients of the outputs."""
    leaves = [t.detach().requires_grad_(i < op.n_grads) for i, t in enumerate(leaves)]
    return on_leaves(op, leaves, call or op.call)


def on_leaves(
    op: Op,
    leaves: list[torch.Tensor],
    call: Callable[..., torch.Tensor | Tensors],
    dys: list[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    out = call(*leaves)
    outputs = list(out) if isinstance(out, tuple) else [out]
    if not op.n_grads:
        return outputs
    floating = [y for y in outputs if y.is_floating_point()]
    dys = gradients_of(floating) if dys is None else dys
    dys = [dy.to(y.dtype) for dy, y in zip(dys, floating, strict=True)]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(floating, leaves[: op.n_grads], dys)]


def gradients_of(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """For the floating-point ones; rounded to bf16, so that every precision is given the same numbers."""
    floating = [y for y in outputs if y.is_floating_point()]
    return [rand(*y.shape, seed=50 + i).bfloat16().float() for i, y in enumerate(floating)]


def on_the_device(op: Op) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Leaves to differentiate, and gradients of the outputs: nothing is left to bring there in a step."""
    leaves = [t.requires_grad_(i < op.n_grads) for i, t in enumerate(op.make(HALF))]
    results = on_leaves(op, leaves, op.call)
    return leaves, gradients_of(results[: len(results) - op.n_grads])


def assert_alike(found: list[torch.Tensor], expected: list[torch.Tensor], *, same_bits: bool) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if same_bits or not a.is_floating_point():
            assert torch.equal(a, b)
        else:
            assert torch.isfinite(a).all()
            tolerance = 1e-5 if a.dtype == torch.float32 else 2**-7
            assert (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.exact])
def test_outputs_and_gradients_are_as_exact_as_plain_pytorch(
    name: str, dtype: torch.dtype, close: Close
) -> None:
    op = OPS[name]
    leaves = op.make(dtype)
    with kernels_of(op):
        found = run(op, leaves)
    with use_backend(op.name, "reference"):
        expected = run(op, [t.double() if t.is_floating_point() else t for t in leaves])
        plain = run(op, leaves)
    for a, truth, same in zip(found, expected, plain, strict=True):
        if a.is_floating_point():
            close(a, truth, same)
        else:
            assert torch.equal(a, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vq_codes_are_nearest_and_their_words_add_up(dtype: torch.dtype) -> None:
    op = OPS["vq_nearest"]
    codebooks, z = op.make(dtype)
    with kernels_of(op):
        quantised, codes, grad = run(op, [codebooks, z])
    residual, levels = z.double(), codebooks.double()
    for level, words in enumerate(levels):
        distances = torch.cdist(residual, words, compute_mode="donot_use_mm_for_euclid_dist").square()
        chosen = distances.gather(1, codes[:, level : level + 1])[:, 0]
        # Distances are differences of numbers of the size of |r|^2 and |c|^2.
        slack = 1e-5 * (residual.square().sum(1) + words.square().sum(1).max())
        assert (chosen <= distances.min(1).values + slack).all()
        residual = residual - words[codes[:, level]]
    total = z.double() - residual
    assert (quantised.double() - total).abs().max() <= 1e-5 * total.abs().max()
    (dq,) = gradients_of([quantised])
    expected = torch.zeros_like(levels)
    for level in range(len(levels)):
        expected[level].index_add_(0, codes[:, level], dq.double())
    assert (grad.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", OPS)
def test_twenty_calls_give_the_same_bits_where_promised(name: str) -> None:
    op = OPS[name]
    leaves = op.make(HALF)
    with kernels_of(op):
        first = run(op, leaves)
        for _ in range(19 if CUDA else 2):
            assert_alike(run(op, leaves), first, same_bits=op.same_bits)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every tensor that is allocated without values starts as NaN, integers as their largest number."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(64, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.mark.parametrize("name", OPS)
def test_every_element_is_written(name: str) -> None:
    op = OPS[name]
    leaves = op.make(HALF)
    with kernels_of(op):
        expected = run(op, leaves)
        with poisoned_memory():
            found = run(op, leaves)
    assert_alike(found, expected, same_bits=False)


@pytest.mark.parametrize("name", OPS_WITH_GRADS)
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    op = OPS[name]
    leaves = op.make(HALF)
    with kernels_of(op):
        found = run(op, leaves, lambda *t: checkpoint(op.call, *t, use_reentrant=False))
        assert_alike(found, run(op, leaves), same_bits=op.same_bits)


def captured(step: Callable[[], list[torch.Tensor]]) -> Callable[[], list[torch.Tensor]]:
    """The step as a CUDA graph: each call of the result replays it and gives its tensors."""
    if not CUDA:
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay() -> list[torch.Tensor]:
        graph.replay()
        return results

    return replay


@pytest.mark.parametrize("name", OPS)
def test_a_replayed_graph_equals_eager_on_new_inputs(name: str) -> None:
    op = OPS[name]
    with kernels_of(op):
        leaves, dys = on_the_device(op)
        replay = captured(lambda: on_leaves(op, leaves, op.call, dys))
        replay()
        with torch.no_grad():
            for t in leaves:
                if t.is_floating_point():
                    t.copy_(t.flip(0) * 0.5)
        assert_alike(replay(), on_leaves(op, leaves, op.call, dys), same_bits=op.same_bits)


@pytest.mark.parametrize("name", OPS)
def test_nothing_waits_for_the_device(name: str) -> None:
    op = OPS[name]
    set_mode = torch.cuda.set_sync_debug_mode if CUDA else str
    with kernels_of(op):
        leaves, dys = on_the_device(op)
        set_mode("error")
        try:
            on_leaves(op, leaves, op.call, dys)
        finally:
            set_mode("default")


@pytest.mark.parametrize("name", OPS)
def test_compiled_without_a_break_equals_eager(name: str) -> None:
    op = OPS[name]
    leaves = op.make(HALF)
    torch._dynamo.reset()
    compiled = torch.compile(op.call, fullgraph=True, backend="inductor" if CUDA else "aot_eager")
    with kernels_of(op):
        assert_alike(run(op, leaves, compiled), run(op, leaves), same_bits=False)
