"""Placing media features on placeholders."""

import pytest
import torch

from muomni.models.fuse import place_features


def test_features_land_on_their_positions_and_padding_is_dropped() -> None:
    embeds, features = torch.zeros(6, 2), torch.arange(1.0, 9.0).view(4, 2)
    placed = place_features(embeds, features, torch.tensor([4, 1, 6, 6]))
    assert placed.tolist() == [[0, 0], [3, 4], [0, 0], [0, 0], [1, 2], [0, 0]]
    assert embeds.abs().sum() == 0


def test_gradient_reaches_placed_features_only_and_not_the_replaced_embeddings() -> None:
    embeds = torch.randn(5, 3, requires_grad=True)
    features = torch.randn(3, 3, requires_grad=True)
    place_features(embeds, features, torch.tensor([2, 5, 0])).sum().backward()
    assert embeds.grad is not None
    assert features.grad is not None
    assert embeds.grad.sum(1).tolist() == [0, 3, 0, 3, 3]
    assert features.grad.sum(1).tolist() == [3, 0, 3]


@pytest.mark.parametrize(
    ("n", "width", "index", "match"),
    [(2, 3, [1], "index"), (1, 3, [1, 2], "index"), (2, 4, [0, 1], "width 3")],
)
def test_counts_or_widths_that_differ_are_errors(n: int, width: int, index: list[int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        place_features(torch.zeros(5, 3), torch.zeros(n, width), torch.tensor(index))
