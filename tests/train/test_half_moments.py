"""AdamW with bfloat16 moments follows torch's AdamW, and leaves all bits alone where a step is left out."""

import copy

import pytest
import torch
from torch import nn

from muomni.recipes import recipe
from muomni.settings import ConfigError, override
from muomni.train.half_moments import HalfMomentsAdamW


def _start(optimizer: HalfMomentsAdamW, dtype: torch.dtype) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.zeros(()), "exp_avg": torch.zeros_like(p, dtype=dtype),
                "exp_avg_sq": torch.zeros_like(p, dtype=dtype),
            }  # fmt: skip


def _gradients(model: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw) * (1.0 + step % 3)


def _trained(
    dtype: torch.dtype, steps: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Parameters before, after ours, after torch's."""
    torch.manual_seed(0)
    ours = nn.Linear(33, 17)
    before, theirs = [p.detach().clone() for p in ours.parameters()], copy.deepcopy(ours)
    options = {"lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": 0.05}
    mine = HalfMomentsAdamW(ours.parameters(), **options)  # type: ignore[arg-type]
    _start(mine, dtype)
    torchs = torch.optim.AdamW(theirs.parameters(), **options)  # type: ignore[arg-type]
    for step in range(steps):
        for model, optimizer in ((ours, mine), (theirs, torchs)):
            _gradients(model, step)
            optimizer.step()
    return before, [p.detach() for p in ours.parameters()], [p.detach() for p in theirs.parameters()]


def test_with_float32_moments_it_is_torchs_adamw() -> None:
    _, ours, theirs = _trained(torch.float32, 20)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_with_bfloat16_moments_the_way_taken_is_nearly_torchs() -> None:
    before, ours, theirs = _trained(torch.bfloat16, 50)
    for start, one, other in zip(before, ours, theirs, strict=True):
        assert float((one - other).norm() / (other - start).norm()) < 0.02


def test_a_step_that_is_left_out_changes_no_bit() -> None:
    layer = nn.Linear(5, 3)
    optimizer = HalfMomentsAdamW(layer.parameters(), lr=0.1, betas=(0.9, 0.98), weight_decay=0.1)
    _start(optimizer, torch.bfloat16)
    for step, left_out in enumerate((1.0, 0.0, 1.0)):
        _gradients(layer, step)
        if left_out:
            for p in layer.parameters():
                assert p.grad is not None
                p.grad.fill_(float("nan"))
        tensors = [t for p in layer.parameters() for t in (p, *optimizer.state[p].values())]
        before = [t.detach().clone() for t in tensors]
        optimizer.found_inf = torch.tensor(left_out)
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True)) == bool(left_out)


def test_a_second_moment_that_could_not_move_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^optim\.beta2: expected at most 0\.995 with optim\.moments=bf16.*got 0\.999"
    ):
        override(recipe("nano", "text"), ["optim.moments=bf16", "optim.beta2=0.999"])
