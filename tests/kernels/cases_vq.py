"""vq_nearest in Triton, in the interpreter or on a GPU, against brute force in fp64."""

from collections.abc import Callable

import pytest
import torch
from muomni_kernels import use_backend, vq_nearest
from torch.library import opcheck

Randn = Callable[..., torch.Tensor]
SHAPES = [(70, 64, 3, 130), (33, 24, 2, 50), (5, 123, 2, 64), (9, 192, 2, 70), (1, 4, 1, 1)]


def check(z: torch.Tensor, books: torch.Tensor) -> None:
    """Every chosen word is as near as any, to rounding; where one is clearly nearest it is that one."""
    with use_backend("vq_nearest", "triton"):
        codes, total = vq_nearest(z, books)
    residual = z.double()
    for level, book in enumerate(books.double()):
        distance = (residual[:, None] - book).square().sum(-1)
        best, chosen = distance.amin(1), distance.gather(1, codes[:, level, None])[:, 0]
        scale = residual.square().sum(1) + book.square().sum(1).amax()
        assert (chosen - best <= 1e-6 * scale).all()
        residual = residual - book[codes[:, level]]
    expected = z.double() - residual
    assert (total.double() - expected).abs().max() <= 1e-5 * (1 + expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_words_are_nearest(shape: tuple[int, ...], dtype: torch.dtype, randn: Randn) -> None:
    n, d, k, s = shape
    check(randn(n, d, seed=0, dtype=dtype), randn(k, s, d, seed=1, dtype=torch.float32))


def test_sliced_and_stride_zero_inputs(randn: Randn) -> None:
    z, books = randn(40, 32, seed=0, dtype=torch.float32), randn(2, 30, 32, seed=1, dtype=torch.float32)
    check(z[::2, 4:20], books[:, ::2, 4:20])
    check(z[:1].expand(6, 32), books)


def test_codes_equal_the_reference_on_well_separated_words(randn: Randn) -> None:
    books = torch.stack([torch.eye(16) * 8, torch.eye(16)]).to(randn(1, seed=0, dtype=torch.float32).device)
    z = books[0][torch.arange(48) % 16] + books[1][torch.arange(48) // 3]
    z = z + 0.01 * randn(48, 16, seed=2, dtype=torch.float32)
    with use_backend("vq_nearest", "reference"):
        expected = vq_nearest(z, books)
    with use_backend("vq_nearest", "triton"):
        found = vq_nearest(z, books)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


def test_ties_go_to_the_lower_index_within_a_block_of_words_and_across(randn: Randn) -> None:
    book = randn(1, 130, 8, seed=0, dtype=torch.float32)
    for first, again in ((3, 17), (3, 100), (70, 129)):
        copy = book.clone()
        copy[0, again] = copy[0, first]
        with use_backend("vq_nearest", "triton"):
            assert int(vq_nearest(copy[0, first : first + 1], copy)[0]) == first


def test_rows_that_are_not_finite_get_valid_codes(randn: Randn) -> None:
    z = randn(3, 8, seed=0, dtype=torch.float32)
    z[0, 2], z[1, 3] = float("nan"), float("inf")
    with use_backend("vq_nearest", "triton"):
        codes, _ = vq_nearest(z, randn(2, 20, 8, seed=1, dtype=torch.float32))
    assert ((codes >= 0) & (codes < 20)).all()


def test_no_rows(randn: Randn) -> None:
    books = randn(2, 5, 8, seed=0, dtype=torch.float32)
    with use_backend("vq_nearest", "triton"):
        codes, total = vq_nearest(books.new_zeros(0, 8), books)
    assert codes.shape == (0, 2) and total.shape == (0, 8)


def test_gradient_of_the_codebooks_equals_the_reference(randn: Randn) -> None:
    z, books = randn(50, 8, seed=0, dtype=torch.float32), randn(3, 10, 8, seed=1, dtype=torch.float32)
    dy, grads = randn(50, 8, seed=2, dtype=torch.float32), []
    for backend in ("triton", "reference"):
        leaf = books.clone().requires_grad_()
        with use_backend("vq_nearest", backend):
            grads.append(torch.autograd.grad(vq_nearest(z, leaf)[1], leaf, dy)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


def test_compiled_without_a_break_equals_eager_and_the_operator_is_sound(randn: Randn) -> None:
    z, books = randn(20, 8, seed=0, dtype=torch.float32), randn(3, 10, 8, seed=1, dtype=torch.float32)

    def quantise(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, total = vq_nearest(a, b)
        return codes, (total * a).sum()

    with use_backend("vq_nearest", "triton"):
        found = torch.compile(quantise, fullgraph=True, backend="aot_eager")(z, books)
        expected = quantise(z, books)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    opcheck(
        torch.ops.muomni.vq_nearest.default,
        (z, books),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
