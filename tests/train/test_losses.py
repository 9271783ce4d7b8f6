"""Losses against PyTorch's own."""

import torch
from torch.nn import functional as F

from muomni.train.losses import contrastive_loss


def test_contrastive_loss_is_the_mean_of_both_directions_cross_entropies() -> None:
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(7, 16, dtype=torch.float64)).float().requires_grad_() for _ in range(2))
    scale = torch.tensor(14.0, requires_grad=True)
    logits, labels = scale * a @ b.T, torch.arange(7)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) * 7 / 2
    found = contrastive_loss(a, b, scale=scale)
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad(value, (a, b, scale)) for value in (found, expected))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
