"""Pictures as network input: resized squares, scaled to [-1, 1], augmented by shift, zoom and colour."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

CHUNK = 8
"""Pictures augmented at once: so many stay in a processor's cache."""


def to_array(image: Image.Image, size: int) -> np.ndarray:
    """A PIL picture fitted on a white square: (3, size, size) uint8 RGB."""
    fitted = image.convert("RGB")
    scale = size / max(fitted.size)
    shape = (max(1, round(fitted.width * scale)), max(1, round(fitted.height * scale)))
    fitted = fitted.resize(shape, Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size), (255, 255, 255))
    square.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1], of the same shape."""
    return images.float().div_(127.5).sub_(1.0)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift, zoom, turn, mirror and mild colour, each drawn per picture, on white paper.

    images: (n, 3, S, S) uint8; not modified. Returns the same shape, float32 in [-1, 1].
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    zoom, angle = uniform(0.85, 1.2), uniform(-0.2, 0.2)
    mirror = torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * zoom * mirror, -angle.sin() * zoom
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * zoom * mirror, angle.cos() * zoom
    theta[:, :, 2] = uniform(-0.12, 0.12, 2)
    # How far a colour is from paper is what is scaled: paper stays white.
    ink = uniform(0.8, 1.15, 1, 1, 1) * (1.0 + uniform(-0.12, 0.12, 3, 1, 1)) / 127.5
    moved = torch.empty(images.shape)
    for start in range(0, n, CHUNK):
        part = slice(start, start + CHUNK)
        grid = places(theta[part], images.shape[-1])
        # Sampling around white: outside the picture is paper, not grey.
        sampled = F.grid_sample(images[part].float().sub_(255.0), grid, align_corners=False)
        torch.clamp(sampled.mul_(ink[part]).add_(1.0), min=-1.0, out=moved[part])
    return moved


def places(theta: torch.Tensor, size: int) -> torch.Tensor:
    """(n, 2, 3) affine maps -> (n, size, size, 2), as F.affine_grid without corners, in about a quarter of its time."""
    at = (torch.arange(size) * 2 + 1) / size - 1.0
    columns, rows = (
        at[:, None] * theta[:, None, :, 0],
        at[:, None] * theta[:, None, :, 1] + theta[:, None, :, 2],
    )
    return columns[:, None] + rows[:, :, None]
