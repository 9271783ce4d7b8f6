"""Training a small Thinker on a GPU with the kernels and without: the same losses, under autocast and compiled.

With MUOMNI_GPU_TESTS_DEVICE=cpu the same bodies run on the CPU, shorter, see test_gpu.py.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from muomni_kernels import triton_support, use_backend
from torch.utils.checkpoint import checkpoint

from muomni.config import ThinkerConfig
from muomni.models.thinker import Thinker

DEVICE = os.environ.get("MUOMNI_GPU_TESTS_DEVICE", "cuda")
CUDA = DEVICE == "cuda"
STEPS = 100 if CUDA else 4
TOKENS = 4096 if CUDA else 96
VOCAB = 1024 if CUDA else 64
HALF = torch.float16 if triton_support.interpreting() else torch.bfloat16
"""The interpreter truncates where bf16 should be rounded."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Step = Callable[[Thinker, torch.Tensor], torch.Tensor]


def thinker(*, layers: int = 4) -> Thinker:
    torch.manual_seed(0)
    width = 256 if CUDA else 64
    config = ThinkerConfig(
        vocab_size=VOCAB, d_model=width, n_layers=layers, n_heads=4, n_kv_heads=2, head_dim=width // 4,
        d_ff=3 * width,
    )  # fmt: skip
    return Thinker(config).to(DEVICE)


def tokens(step: int) -> torch.Tensor:
    """A walk whose next token is one of two for each token: something to learn."""
    generator = torch.Generator().manual_seed(step)
    ids = [1]
    for choice in torch.randint(2, (TOKENS,), generator=generator).tolist():
        ids.append((ids[-1] * 3 + 1 + choice) % VOCAB)
    return torch.tensor(ids).to(DEVICE)


def summed_loss(model: Thinker, ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(TOKENS, device=DEVICE)[:, None].expand(-1, 3) % (TOKENS // 8)
    bounds = torch.arange(0, TOKENS + 1, TOKENS // 8, device=DEVICE, dtype=torch.int32)
    hidden = model(model.embed(ids[:-1]), positions, bounds, TOKENS // 8)
    return model.cross_entropy(hidden, ids[1:])[0]


def autocast() -> AbstractContextManager[None]:
    return torch.autocast(DEVICE, HALF)  # type: ignore[return-value]


def references() -> AbstractContextManager[None]:
    return use_backend(None, "reference")


def losses(
    backends: Callable[[], AbstractContextManager[None]], *, noise_seed: int | None = None
) -> torch.Tensor:
    """Mean loss of every step, AdamW under autocast. noise_seed: weights start off by half a unit in bf16's
    last place, each up or down."""
    model = thinker()
    if noise_seed is not None:
        generator = torch.Generator().manual_seed(noise_seed)
        with torch.no_grad():
            for weight in model.parameters():
                sign = torch.randint(2, weight.shape, generator=generator).to(DEVICE) * 2 - 1
                weight.mul_(1 + 2**-9 * sign)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    with backends():
        for step in range(STEPS):
            with autocast():
                loss = summed_loss(model, tokens(step)) / TOKENS
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach().double())
    return torch.stack(found)


def test_a_hundred_steps_with_and_without_kernels_have_the_same_losses() -> None:
    plain = losses(references)
    ours = losses(nullcontext)
    noise = [(losses(references, noise_seed=seed) - plain).abs() for seed in (1, 2)]
    assert plain[-1] < plain[0] - (0.5 if CUDA else 0.0), "the model learns"
    # Rounding differs between the two; what rounding alone does is seen from weights that differ by it.
    spread = torch.stack(noise).max()
    difference = (ours - plain).abs()
    assert difference.max() <= 2 * spread, f"{difference.max():.2e} against a spread of {spread:.2e}"
    last = max(1, STEPS // 5)
    assert difference[-last:].mean() <= 2 * torch.stack(noise)[:, -last:].mean(1).max()


def gradients(model: Thinker, loss: Step = summed_loss) -> list[torch.Tensor]:
    with autocast():
        value = loss(model, tokens(0)) / TOKENS
    return [value.detach(), *torch.autograd.grad(value, list(model.parameters()))]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.isfinite(a).all() and a.dtype == b.dtype
        assert (a - b).float().norm() <= tolerance * b.float().norm() + 1e-7


def test_gradients_under_autocast_agree_with_the_references() -> None:
    model = thinker()
    found = gradients(model)
    with references():
        expected = gradients(model)
    # A few roundings to bf16 (2^-9 each) a layer, added up over the layers.
    assert_close(found, expected, 3e-2)


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    model = thinker()
    plain = model.stack

    def checkpointed(model: Thinker, ids: torch.Tensor) -> torch.Tensor:
        forward = plain.forward
        plain.forward = lambda *t: checkpoint(forward, *t, use_reentrant=False)  # type: ignore[method-assign]
        try:
            return summed_loss(model, ids)
        finally:
            plain.forward = forward  # type: ignore[method-assign]

    assert_close(gradients(model, checkpointed), gradients(model), 1e-2)


def test_compiled_without_a_break_equals_eager() -> None:
    model = thinker(layers=2)
    torch._dynamo.reset()
    compiled = torch.compile(summed_loss, fullgraph=True, backend="inductor" if CUDA else "aot_eager")
    # Inductor keeps in fp32 what eager rounds to bf16 between two operations.
    assert_close(gradients(model, compiled), gradients(model), 3e-2)
