"""vq_nearest: the reference against brute force in fp64, its gradient, and the checks."""

from collections.abc import Callable

import pytest
import torch
from muomni_kernels import vq_nearest


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_level_names_the_nearest_word_of_what_is_left() -> None:
    z, books = randn(300, 16, seed=0), randn(4, 64, 16, seed=1)
    codes, total = vq_nearest(z, books)
    residual = z.double()
    for level, book in enumerate(books.double()):
        distance = (residual[:, None] - book).square().sum(-1)
        assert torch.equal(codes[:, level], distance.argmin(-1))
        residual = residual - book[codes[:, level]]
    torch.testing.assert_close(total.double(), z.double() - residual, rtol=1e-6, atol=1e-6)
    assert codes.dtype == torch.int64 and total.dtype == torch.float32


def test_ties_go_to_the_lower_index() -> None:
    book = torch.tensor([[[5.0], [1.0], [-1.0], [1.0]]])
    codes, _ = vq_nearest(torch.tensor([[0.0], [1.0], [3.0], [-1.0]]), book)
    assert codes[:, 0].tolist() == [1, 1, 0, 2]


def test_the_sum_is_differentiable_in_the_codebooks_and_constant_in_z() -> None:
    z, books = randn(7, 3, seed=0).double().requires_grad_(), randn(2, 5, 3, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: vq_nearest(z.detach(), b)[1], (books,))
    _, total = vq_nearest(z, books.detach())
    assert not total.requires_grad


def test_half_input_is_computed_in_fp32() -> None:
    z, books = randn(50, 8, seed=0).half(), randn(3, 20, 8, seed=1)
    found, expected = vq_nearest(z, books), vq_nearest(z.float(), books)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize(("n", "k"), [(0, 2), (4, 0)])
def test_nothing_to_do(n: int, k: int) -> None:
    codes, total = vq_nearest(torch.zeros(n, 8), torch.ones(k, 5, 8))
    assert codes.shape == (n, k) and total.shape == (n, 8) and not total.any()


BAD: dict[str, tuple[str, Callable[[], object]]] = {
    "rank": (r"z: expected \(N, 8\), got \(8,\)", lambda: vq_nearest(torch.zeros(8), torch.zeros(2, 5, 8))),
    "width": (r"z: expected \(N, 8\)", lambda: vq_nearest(torch.zeros(4, 7), torch.zeros(2, 5, 8))),
    "books": (r"codebooks: expected \(K, S, D\)", lambda: vq_nearest(torch.zeros(4, 8), torch.zeros(5, 8))),
    "no word": ("at least one word", lambda: vq_nearest(torch.zeros(4, 8), torch.zeros(2, 0, 8))),
    "dtype": ("z: expected a floating", lambda: vq_nearest(torch.zeros(4, 8).int(), torch.zeros(2, 5, 8))),
    "half books": ("float32 or float64", lambda: vq_nearest(torch.zeros(4, 8), torch.zeros(2, 5, 8).half())),
    "device": (
        "codebooks: expected z's device cpu",
        lambda: vq_nearest(torch.zeros(4, 8), torch.zeros(2, 5, 8, device="meta")),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument(name: str) -> None:
    message, call = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
