"""Depthwise convolution over packed rows; causal convolution and its streaming state."""

import torch
from torch.nn import functional as F

from muomni.nn.conv import CausalConv1d, CausalMix, depthwise_packed, earlier_rows, same_document


def _cu(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def test_depthwise_packed_equals_conv1d_on_each_document_alone() -> None:
    torch.manual_seed(0)
    lengths = (5, 1, 2, 9)
    x = torch.randn(sum(lengths), 6, requires_grad=True)
    weight = torch.randn(7, 6, requires_grad=True)
    y = depthwise_packed(x, weight, same_document(_cu(*lengths), len(x), kernel=7))
    y.square().sum().backward()
    grads = [x.grad, weight.grad]
    x.grad = weight.grad = None
    alone = [
        F.conv1d(part.T[None], weight.T[:, None], padding=3, groups=6)[0].T for part in x.split(list(lengths))
    ]
    torch.cat(alone).square().sum().backward()
    assert torch.allclose(y, torch.cat(alone), atol=1e-5)
    assert x.grad is not None
    assert weight.grad is not None
    assert torch.allclose(grads[0], x.grad, atol=1e-4)
    assert torch.allclose(grads[1], weight.grad, atol=1e-4)


def test_depthwise_packed_does_not_leak_over_documents() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(12, 4), torch.randn(7, 4)
    same = same_document(_cu(5, 7), 12, kernel=7)
    changed = x.clone()
    changed[:5] += 100.0
    assert torch.equal(depthwise_packed(x, weight, same)[5:], depthwise_packed(changed, weight, same)[5:])


def test_a_causal_mix_is_the_sum_over_the_rows_before_in_the_same_document() -> None:
    torch.manual_seed(0)
    lengths, mix = (5, 1, 3), CausalMix(4, kernel=4)
    x = torch.randn(sum(lengths), 4)
    expected = [
        sum((mix.weight[j] * part[t - j] for j in range(min(4, t + 1))), torch.zeros(4))
        for part in x.split(list(lengths))
        for t in range(len(part))
    ]
    y = mix(x, earlier_rows(_cu(*lengths), len(x), n=3))
    torch.testing.assert_close(y, torch.stack(expected))
    assert (mix.weight[0] == 1.0).all() and mix.weight[1:].abs().min() > 0


def test_causal_conv_equals_padded_conv1d_and_its_stream() -> None:
    torch.manual_seed(0)
    conv = CausalConv1d(5, 3, kernel=3, dilation=2)
    x = torch.randn(2, 11, 5)
    kernel = conv.taps.weight.view(3, 3, 5).transpose(1, 2)
    reference = F.conv1d(F.pad(x.transpose(1, 2), (4, 0)), kernel, conv.taps.bias, dilation=2).transpose(1, 2)
    assert torch.allclose(conv(x), reference, atol=1e-5)
    state, parts = conv.new_state(2, device="cpu", dtype=torch.float32), []
    for part in x.split([1, 4, 1, 5], dim=1):
        y, state = conv.step(part, state)
        parts.append(y)
    assert torch.allclose(torch.cat(parts, dim=1), reference, atol=1e-5)
