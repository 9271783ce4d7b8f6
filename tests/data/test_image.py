"""Pictures as network input."""

import numpy as np
import torch
from PIL import Image

from muomni.data.image import augment, to_array, to_float


def test_to_array_keeps_the_aspect_on_white() -> None:
    array = to_array(Image.new("RGB", (40, 20), (255, 0, 0)), 64)
    assert array.shape == (3, 64, 64) and array.dtype == np.uint8
    assert tuple(array[:, 32, 32]) == (255, 0, 0)
    assert tuple(array[:, 2, 32]) == (255, 255, 255)


def test_to_float_spans_minus_one_to_one_and_keeps_the_mean_when_resized() -> None:
    images = torch.randint(
        0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert to_float(torch.full_like(images, 255), 128).eq(1.0).all()
    assert to_float(torch.zeros_like(images), 64).eq(-1.0).all()
    small = to_float(images, 64)
    assert small.shape == (2, 3, 64, 64)
    assert torch.allclose(small.mean((-1, -2)), to_float(images, 128).mean((-1, -2)), atol=0.02)


def test_augment_is_decided_by_its_generator_and_leaves_its_input_alone() -> None:
    images = torch.ones(4, 3, 32, 32)
    images[:, :, 8:24, 8:24] = -0.5
    before = images.clone()
    a = augment(images, torch.Generator().manual_seed(1))
    b = augment(images, torch.Generator().manual_seed(1))
    c = augment(images, torch.Generator().manual_seed(2))
    assert torch.equal(images, before)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.min() >= -1.0 and a.max() <= 1.0
    assert not torch.equal(a[0], a[1]), "drawn per picture"
