"""Blocks computed again give the gradients of blocks kept, dropout's masks included."""

import pytest
import torch
from torch import nn

from muomni.models.memory import recompute
from muomni.nn.block import Stack


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.3},
        {"n_experts": 4},
        {"conv_kernel": 3, "causal": False},
        {"mix_kernel": 3, "late_keys": True},
    ],
    ids=str,
)
def test_gradients_are_those_of_blocks_that_are_kept(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    arguments = {
        "n_layers": 2,
        "n_heads": 2,
        "n_kv_heads": 1,
        "head_dim": 32,
        "d_ff": 64,
        "causal": True,
        **options,
    }
    stack = Stack(64, **arguments)  # type: ignore[arg-type]
    x = torch.randn(40, 64)
    cu_seqlens = torch.tensor([0, 15, 40], dtype=torch.int32)
    found = []
    for again in (False, True):
        recompute(nn.Sequential(stack), again)
        stack.zero_grad()
        torch.manual_seed(1)
        out = stack(x, None, None, cu_seqlens, 25)
        after = torch.get_rng_state()
        out.square().sum().backward()
        found.append(
            [out.detach(), after, *(p.grad.clone() for p in stack.parameters() if p.grad is not None)]
        )
    assert all(torch.equal(kept, anew) for kept, anew in zip(*found, strict=True))


def test_a_backward_computed_again_keeps_less() -> None:
    """Oracle: the bytes autograd's hooks are given to keep."""
    stack = Stack(64, n_layers=4, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=256, causal=True)
    x, cu_seqlens = torch.randn(256, 64, requires_grad=True), torch.tensor([0, 256], dtype=torch.int32)
    kept = []
    for again in (False, True):
        recompute(stack, again)
        sizes: list[int] = []

        def pack(t: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(t.nbytes)
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            stack(x, None, None, cu_seqlens, 256)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
