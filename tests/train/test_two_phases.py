"""A stage with two phases, as adversarial training has: each its own parameters, optimizer and losses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import OptimConfig, RunConfig, TrainConfig
from muomni.models.weights import load_weights, newest_complete
from muomni.recipes import model as sized
from muomni.train.loop import Result, train
from muomni.train.stage import Figure, Parts, StageBase, generator

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
N_ITEMS = 32


def _net(*widths: int) -> nn.Module:
    return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.Tanh(), nn.Linear(widths[1], widths[2])).double()


class Duel(StageBase):
    """A critic tells real rows from made ones; the maker fools it, and matches some rows. In float64."""

    name = "text"
    phases = ("critic", "maker")
    saved = ("critic", "maker")
    weights: Mapping[str, float] = MappingProxyType({"real": 1.0, "made": 1.0, "fool": 1.0, "match": 0.5})
    cuts: tuple[int, ...] = (N_ITEMS,)
    """Items of each micro-batch of a step."""

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        return Parts(critic=_net(3, 8, 1), maker=_net(4, 8, 3))

    def parameters(self, model: nn.Module, phase: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in model.named_parameters() if name.startswith(phase)}

    def batch(self, position: int, parts: int = 1) -> list[Batch]:
        step, part = divmod(position, len(self.cuts))
        draw = generator(0, step)
        noise, real = (torch.randn(N_ITEMS, n, generator=draw, dtype=torch.float64) for n in (4, 3))
        # Few rows are matched, none of the first five.
        some = (torch.rand(N_ITEMS, generator=draw) < 0.4) & (torch.arange(N_ITEMS) >= 5)
        start = sum(self.cuts[:part])
        return [tuple(t[start : start + self.cuts[part]] for t in (noise, real * 2 + 1, some))]  # type: ignore[list-item]

    def counts(self, batch: Batch) -> dict[str, torch.Tensor | int]:
        n = len(batch[0])
        return {"real": n, "made": n, "fool": n, "match": batch[2].sum()}

    def losses(self, model: nn.Module, batch: Batch, phase: str) -> dict[str, torch.Tensor]:
        noise, real, some = batch
        critic, made = model.get_submodule("critic"), model.get_submodule("maker")(noise)
        if phase == "critic":
            return {"real": F.softplus(-critic(real)).sum(), "made": F.softplus(critic(made.detach())).sum()}
        return {
            "fool": F.softplus(-critic(made)).sum(),
            "match": ((made - real).abs().mean(1) * some).sum(),
        }

    def fill(self, batch: Batch) -> tuple[int, int]:
        return len(batch[0]), N_ITEMS

    def evaluate(self, model: nn.Module, split: str) -> list[Figure]:
        total = sum(float(p.sum()) for p in model.parameters())
        return [Figure(name="sum of weights", value=total, baseline=0.0, baseline_name="zero")]


def _run(*, steps: int = 5, micro_batches: int = 1, save_every: int = 0, name: str = "adamw") -> RunConfig:
    return RunConfig(
        stage="text", model=sized("nano"),
        train=TrainConfig(
            steps=steps, log_every=1, micro_batches=micro_batches, save_every=save_every, keep=9
        ),
        optim=OptimConfig(lr=0.02, warmup_steps=1, name=name),  # type: ignore[arg-type]
    )  # fmt: skip


def _stage(run: RunConfig, cuts: tuple[int, ...] = (N_ITEMS,)) -> Duel:
    stage = Duel(run)
    stage.cuts = cuts
    return stage


def _state(result: Result, step: int | None = None) -> dict[str, torch.Tensor]:
    path = newest_complete(result.directory)
    assert path is not None
    path = path if step is None else path.with_name(f"step-{step:08d}")
    return load_weights(path / "weights.safetensors") | {
        f"o/{k}": v for k, v in load_weights(path / "optimizer.safetensors").items()
    }


@pytest.mark.parametrize("cuts", [(5, 3, 9, 15), (31, 1), (8, 8, 8, 8)])
def test_one_batch_of_32_equals_uneven_micro_batches_in_both_phases(
    tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    """Five steps; the second phase starts from the first one's update. One micro-batch has no row to match."""
    whole, split = _run(), _run(micro_batches=len(cuts))
    a = _state(train(_stage(whole), whole, tmp_path / "a", device="cpu"))
    b = _state(train(_stage(split, cuts), split, tmp_path / "b", device="cpu"))
    assert a.keys() == b.keys() and {k.split("/")[1] for k in a if k.startswith("o/")} == {"critic", "maker"}
    for name, value in a.items():
        assert value.dtype == torch.float64 or value.numel() == 1, name
        torch.testing.assert_close(value, b[name], rtol=0, atol=1e-12, msg=name)


def test_a_phase_is_its_own_division_own_gradient_and_own_update(tmp_path: Path) -> None:
    """Oracle: both phases of one step by hand, the maker against the critic that was just moved."""
    run = _run(steps=2, save_every=1)
    stage = _stage(run)
    result = train(stage, run, tmp_path, device="cpu")
    before, after = _state(result, 1), _state(result, 2)
    model = stage.build(run, tmp_path)
    noise, real, some = stage.batch(1)[0]
    for phase in stage.phases:
        # Of this step the critic has moved when the maker is judged.
        seen = {
            k: (after if phase == "maker" and k.startswith("critic") else before)[k]
            for k in model.state_dict()
        }
        model.load_state_dict(seen)
        made = model.get_submodule("maker")(noise)
        critic = model.get_submodule("critic")
        if phase == "critic":
            loss = F.softplus(-critic(real)).mean() + F.softplus(critic(made)).mean()
        else:
            loss = F.softplus(-critic(made)).mean() + 0.5 * (made - real).abs().mean(1)[some].mean()
        own = stage.parameters(model, phase)
        gradients = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
        for name, gradient in gradients.items():
            clipped = gradient * min(1.0, float(1.0 / norm))
            old, new = (s[f"o/{phase}/{name}/exp_avg"] for s in (before, after))
            torch.testing.assert_close(new, 0.9 * old + 0.1 * clipped, rtol=1e-6, atol=1e-9, msg=name)
            assert not torch.equal(before[name], after[name])


def test_two_phases_resume_bit_for_bit(tmp_path: Path) -> None:
    run = _run(steps=6, save_every=3, name="muon")
    straight = _state(train(_stage(run), run, tmp_path / "a", device="cpu"))

    def stop(step: int, steps: int, row: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(_stage(run), run, tmp_path / "b", device="cpu", progress=stop)
    resumed = _state(train(_stage(run), run, tmp_path / "b", device="cpu"))
    assert straight.keys() == resumed.keys()
    assert [k for k in straight if not torch.equal(straight[k], resumed[k])] == []
