"""Pictures as network input."""

import numpy as np
import pytest
import torch
from PIL import Image

from muomni.data.image import augment, places, to_array, to_float


def test_to_array_keeps_the_aspect_on_white() -> None:
    array = to_array(Image.new("RGB", (40, 20), (255, 0, 0)), 64)
    assert array.shape == (3, 64, 64) and array.dtype == np.uint8
    assert tuple(array[:, 32, 32]) == (255, 0, 0)
    assert tuple(array[:, 2, 32]) == (255, 255, 255)


def test_to_float_spans_minus_one_to_one() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert to_float(images).flatten().tolist() == pytest.approx(np.linspace(-1.0, 1.0, 256), abs=1e-6)


def test_augment_is_decided_by_its_generator_and_leaves_its_input_alone() -> None:
    images = torch.full((20, 3, 32, 32), 255, dtype=torch.uint8)
    images[:, :, 8:24, 8:24] = 64
    before = images.clone()
    a = augment(images, torch.Generator().manual_seed(1))
    b = augment(images, torch.Generator().manual_seed(1))
    c = augment(images, torch.Generator().manual_seed(2))
    assert torch.equal(images, before)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == images.shape and a.dtype == torch.float32
    assert a.min() >= -1.0 and a.max() <= 1.0
    assert not torch.equal(a[0], a[1]), "drawn per picture"
    assert not torch.equal(a[0], a[-1]), "also of another chunk"


def test_augment_leaves_paper_white_and_moves_ink() -> None:
    """A dot in the middle stays within what shift, turn and zoom allow; all else is paper."""
    images = torch.full((64, 3, 33, 33), 255, dtype=torch.uint8)
    assert augment(images, torch.Generator().manual_seed(0)).eq(1.0).all()
    images[:, :, 15:18, 15:18] = 0
    moved = augment(images, torch.Generator().manual_seed(0))
    row, column = (moved.amin((1, 2)).argmin(1), moved.amin((1, 3)).argmin(1))
    assert len({*zip(row.tolist(), column.tolist(), strict=True)}) > 16
    # 0.12 of half a side, turned, over the smallest zoom: 2.9 pixels, and the dot's own half.
    assert (row - 16).abs().max() <= 5 and (column - 16).abs().max() <= 5
    assert (moved < 0.5).sum((1, 2, 3)).max() < 3 * 25


def test_places_are_those_of_affine_grid() -> None:
    theta = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(theta, [5, 3, 33, 33], align_corners=False)
    torch.testing.assert_close(places(theta, 33), expected, atol=1e-5, rtol=1e-5)
