"""Products of single layers, counted from a forward, against torch's own counter over forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from muomni.models.flops import counting

LAYERS = {
    "linear": (nn.Linear(5, 7), (11, 5)),
    "linear without bias, 3-D": (nn.Linear(5, 7, bias=False), (2, 3, 5)),
    "conv": (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 13)),
    "transposed conv": (nn.ConvTranspose1d(4, 6, 4, stride=2), (2, 4, 13)),
    "conv 2-D": (nn.Conv2d(3, 5, (3, 1)), (2, 3, 8, 9)),
}


@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_costs_what_torch_counts(name: str, frozen: bool, input_grad: bool) -> None:
    layer, shape = LAYERS[name]
    layer.requires_grad_(not frozen)
    x = torch.randn(shape, requires_grad=input_grad)
    with counting(layer) as counter:
        layer(x)
    with FlopCounterMode(display=False) as expected:
        y = layer(x).sum()
        if y.requires_grad:
            y.backward()
    assert counter.products == expected.get_total_flops() > 0


def test_nothing_is_counted_twice_or_afterwards() -> None:
    layer, x = nn.Linear(5, 7), torch.randn(11, 5)
    with counting(layer) as counter:
        layer(x)
        once = counter.products
        with torch.no_grad():
            layer(x)
    layer(x)
    assert (once, counter.products) == (2 * 2 * 5 * 7 * 11, 3 * 2 * 5 * 7 * 11)
