"""Pictures as network input: resized squares, scaled to [-1, 1], augmented by shift, zoom and colour."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def to_array(image: Image.Image, size: int) -> np.ndarray:
    """A PIL picture fitted on a white square: (3, size, size) uint8 RGB."""
    fitted = image.convert("RGB")
    scale = size / max(fitted.size)
    shape = (max(1, round(fitted.width * scale)), max(1, round(fitted.height * scale)))
    fitted = fitted.resize(shape, Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size), (255, 255, 255))
    square.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def to_float(images: torch.Tensor, size: int) -> torch.Tensor:
    """(n, 3, H, W) uint8 -> (n, 3, size, size) float32 in [-1, 1], resized by area when the size differs."""
    scaled = images.float().div(127.5).sub(1.0)
    if scaled.shape[-1] == size and scaled.shape[-2] == size:
        return scaled
    return F.interpolate(scaled, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift, zoom, mirror and mild colour, each drawn per picture.

    images: (n, 3, S, S) float32 in [-1, 1] on white (1.0); not modified. Returns the same shape.
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
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Sampling around white: outside the picture is paper, not grey.
    moved = F.grid_sample(images - 1.0, grid, align_corners=False) + 1.0
    contrast, tint = uniform(0.8, 1.15, 1, 1, 1), uniform(-0.12, 0.12, 3, 1, 1)
    return ((moved - 1.0) * contrast + 1.0 + tint * (moved < 0.98).any(1, keepdim=True)).clamp(-1.0, 1.0)
