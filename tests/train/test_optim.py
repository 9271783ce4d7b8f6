"""The optimizer: Muon for matrices, averages, spikes, and what a skipped step leaves alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from muomni.config import OptimConfig
from muomni.models.omni import OmniModel
from muomni.recipes import model as sized
from muomni.train.ema import WARM_UP
from muomni.train.optim import MOMENTUM, Optimizer, is_block_matrix
from muomni.train.spikes import SpikeGuard

CONFIG = OptimConfig(lr=0.01, weight_decay=0.1, grad_clip=1e9)
EVERYTHING = dataclasses.replace(CONFIG, name="muon", ema_decay=0.9, spike_sigma=4.0, spike_window=4)
HALF = dataclasses.replace(CONFIG, moments="bf16")


def _net() -> nn.Module:
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
    return nn.ModuleDict({"embedding": nn.Embedding(5, 6), "stack": nn.ModuleDict({"blocks": blocks})})


def _gradients(net: nn.Module, seed: int, *, scale: float = 1.0) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=draw)


def _optimizer(net: nn.Module, config: OptimConfig = CONFIG) -> Optimizer:
    return Optimizer(dict(net.named_parameters()), config)


LOSS = torch.tensor(1.0)


def test_muon_takes_the_projections_of_the_blocks_alone() -> None:
    """Oracle: the list of what blocks are made of, for every part of a model."""
    taken: set[str] = set()
    left: set[str] = set()
    for name, parameter in OmniModel(sized("nano")).named_parameters():
        own = name.split(".blocks.")[-1].split(".", 1)[-1] if ".blocks." in name else name
        (taken if is_block_matrix(name, parameter) else left).add(own)
    assert taken == {
        "attention.qkv.weight", "attention.out.weight", "ff.gate_up.weight", "ff.down.weight", "conv.out.weight",
    }  # fmt: skip
    assert {"thinker.embedding", "conv.weight", "attention_norm.weight"} <= left
    assert not is_block_matrix("stack.blocks.0.ff.router.weight", torch.zeros(4, 4))
    assert not is_block_matrix("stack.blocks.0.ff.gate_up", torch.zeros(2, 4, 4))


def test_muon_and_adamw_are_those_of_torch() -> None:
    """Oracle: torch.optim.Muon and torch.optim.AdamW on copies."""
    net = _net()
    twin = copy.deepcopy(net)
    optimizer = _optimizer(net, dataclasses.replace(CONFIG, name="muon"))
    named = dict(twin.named_parameters())
    matrices = [p for n, p in named.items() if "blocks" in n and p.ndim == 2]
    muon = torch.optim.Muon(
        matrices, lr=0.01, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    rest = [p for n, p in named.items() if not ("blocks" in n and p.ndim == 2)]
    adam = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(3):
        _gradients(net, step)
        _gradients(twin, step)
        optimizer.step(LOSS, 0.01)
        muon.step()
        adam.step()
    for (name, a), b in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)
    assert "stack.blocks.0.weight/momentum_buffer" in optimizer.state()
    assert "stack.blocks.0.bias/exp_avg" in optimizer.state()


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
@pytest.mark.parametrize("poison", ["loss", "gradient", "infinite", "spike"])
def test_a_skipped_step_leaves_every_bit_alone(poison: str, moments: str) -> None:
    net = _net()
    optimizer = _optimizer(net, dataclasses.replace(EVERYTHING, moments=moments))
    for step in range(6):
        _gradients(net, step)
        outcome = optimizer.step(LOSS, 0.01)
        assert outcome.skipped == 0
    tensors = {
        **optimizer.state(),
        **dict(net.named_parameters()),
        **{f"ema {k}": v for k, v in optimizer.averages.items()},
    }
    before = {k: v.detach().clone() for k, v in tensors.items()}
    _gradients(net, 9, scale=1e4 if poison == "spike" else 1.0)
    gradient = next(net.parameters()).grad
    assert gradient is not None
    if poison in ("gradient", "infinite"):
        gradient[0, 0] = math.nan if poison == "gradient" else math.inf
    outcome = optimizer.step(torch.tensor(math.nan) if poison == "loss" else LOSS, 0.01)
    assert outcome.skipped == 1 and outcome.spiked == (poison == "spike")
    assert [k for k, v in tensors.items() if not torch.equal(v, before[k])] == []
    _gradients(net, 10)
    assert optimizer.step(LOSS, 0.01).skipped == 0
    assert not any(torch.equal(v, before[k]) for k, v in tensors.items())


@pytest.mark.parametrize("config", [CONFIG, HALF, EVERYTHING], ids=["adamw", "half", "everything"])
def test_state_saved_and_loaded_goes_on_bit_for_bit(config: OptimConfig) -> None:
    net, other = _net(), _net()
    first = _optimizer(net, config)
    for step in range(5):
        _gradients(net, step)
        first.step(LOSS, 0.01)
    state = {k: v.clone() for k, v in first.state().items()}
    weights = {k: v.detach().clone() for k, v in net.state_dict().items()} | {
        k: v.clone() for k, v in first.averages.items()
    }
    other.load_state_dict(weights)
    second = _optimizer(other, config)
    second.load(state)
    for step in range(5, 8):
        for model, optimizer in ((net, first), (other, second)):
            _gradients(model, step)
            optimizer.step(LOSS, 0.01)
    ends = [{**o.state(), **o.averages, **{f"p/{n}": p for n, p in m.named_parameters()}}
            for m, o in ((net, first), (other, second))]  # fmt: skip
    assert ends[0].keys() == ends[1].keys()
    assert [k for k, v in ends[0].items() if not torch.equal(v, ends[1][k])] == []


def test_state_of_another_optimizer_is_refused() -> None:
    state = _optimizer(_net()).state()
    with pytest.raises(KeyError, match="names differ"):
        _optimizer(_net(), EVERYTHING).load(state)


def test_averages_follow_their_formula_and_swap_back() -> None:
    """Oracle: the recurrence in float64 over the trajectory of one parameter."""
    net = _net()
    optimizer = _optimizer(net, dataclasses.replace(CONFIG, ema_decay=0.8))
    name, parameter = "stack.blocks.1.weight", net.get_parameter("stack.blocks.1.weight")
    expected = parameter.detach().double().clone()
    for step in range(12):
        _gradients(net, step)
        bad = step == 5
        optimizer.step(torch.tensor(math.inf) if bad else LOSS, 0.05)
        n = step - (step > 5)
        decay = 1.0 if bad else min(0.8, (1 + n) / (WARM_UP + n))
        expected = decay * expected + (1 - decay) * parameter.detach().double()
    torch.testing.assert_close(optimizer.averages[name].double(), expected, rtol=1e-6, atol=1e-7)
    trained = parameter.detach().clone()
    with optimizer.averaged():
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(parameter, trained)
    assert torch.equal(parameter, trained)
    with pytest.raises(ZeroDivisionError), optimizer.averaged():
        raise ZeroDivisionError
    assert torch.equal(parameter, trained)


def test_averages_are_off_by_default() -> None:
    optimizer = _optimizer(_net())
    assert optimizer.averages == {} and all(
        k.split("/")[1] in ("step", "exp_avg", "exp_avg_sq") for k in optimizer.state()
    )


def _guard(**changes: Any) -> SpikeGuard:
    return SpikeGuard(**({"sigma": 4.0, "window": 10, "device": torch.device("cpu")} | changes))


def test_statistics_are_the_mean_and_variance_of_accepted_values() -> None:
    """Oracle: numpy over the accepted values alone; NaN, infinities and refused values in between."""
    draw = np.random.default_rng(0)
    guard, accepted = _guard(window=1_000), []
    for i in range(60):
        value = [float(draw.gamma(4.0)), math.nan, math.inf, 1e30][0 if i % 4 else i // 4 % 4]
        good = value < 1e6
        guard.update(torch.tensor(value), accepted=torch.tensor(good))
        accepted += [value] if good else []
    assert guard.n == len(accepted)
    assert float(guard.mean) == pytest.approx(np.mean(accepted), rel=1e-5)
    assert float(guard.variance) == pytest.approx(np.var(accepted), rel=1e-4)


def test_a_spike_is_judged_after_the_window_and_against_mean_and_deviation() -> None:
    guard = _guard(sigma=3.0, window=10)
    for i in range(10):
        assert not guard.spiked(torch.tensor(1e9))
        guard.update(torch.tensor(1.0 + i % 2), accepted=torch.tensor(True))
    # Mean 1.5, deviation 0.5: the limit is 3.
    assert [bool(guard.spiked(torch.tensor(v))) for v in (2.99, 3.01, math.nan, math.inf)] == [
        False, True, False, False,
    ]  # fmt: skip


def test_the_window_forgets() -> None:
    guard = _guard(window=10)
    for value in [100.0] * 50 + [1.0] * 100:
        guard.update(torch.tensor(value), accepted=torch.tensor(True))
    assert float(guard.mean) == pytest.approx(1.0, abs=0.01)
