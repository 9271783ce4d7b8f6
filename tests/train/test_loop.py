"""The loop on a stage small enough to check by hand: division, skipping, resume, reuse, stopping."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from muomni.config import FREE, OptimConfig, RunConfig, TrainConfig
from muomni.models.weights import CheckpointError
from muomni.recipes import model
from muomni.train.loop import Result, train
from muomni.train.optim import Optimizer
from muomni.train.schedule import learning_rate
from muomni.train.stage import Figure, Parts, StageBase, generator, parent_checkpoint


class Line(nn.Module):
    """y = W x with a running mean of its inputs."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("mean", torch.zeros(4))


class LineStage(StageBase):
    """Regression on batches of uneven size; a batch may be poisoned."""

    name = "text"
    saved = ("line",)
    weights: Mapping[str, float] = MappingProxyType({"square": 1.0})
    poisoned: tuple[int, ...] = ()
    stop_at: int | None = None

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        return Parts(line=Line())

    def batch(self, position: int, parts: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if position == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(1 + position % 5, 4, generator=generator(0, position))
        y = x.sum(1) * (float("nan") if position in self.poisoned else 1.0)
        return list(zip(x.chunk(parts), y.chunk(parts), strict=True))

    def counts(self, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor | int]:
        return {"square": len(batch[0])}

    def losses(
        self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], phase: str
    ) -> dict[str, torch.Tensor]:
        x, y = batch
        line = model.get_submodule("line")
        assert isinstance(line, Line)
        # Random noise as dropout would give: a resume must repeat it.
        predicted = line.layer(x)[:, 0] + 0.01 * torch.randn(len(x))
        line.mean.add_(x.mean(0).detach() + y.mean() * 0)
        return {"square": ((predicted - y) ** 2).sum()}

    def fill(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[int, int]:
        return len(batch[0]), 5

    def evaluate(self, model: nn.Module, split: str) -> list[Figure]:
        line = model.get_submodule("line")
        assert isinstance(line, Line)
        distance = float((line.layer.weight - 1).abs().sum())
        return [Figure(name="distance", value=distance, baseline=4.0, baseline_name="zero")]


def _run(steps: int = 6, **changes: Any) -> RunConfig:
    return RunConfig(
        stage="text", model=model("nano"), train=TrainConfig(**{"steps": steps, "log_every": 1, **changes}),
        optim=OptimConfig(lr=0.05, warmup_steps=1),
    )  # fmt: skip


def _weights(result: Result) -> dict[str, torch.Tensor]:
    from muomni.models.weights import load_weights, newest_complete

    path = newest_complete(result.directory)
    assert path is not None
    state = load_weights(path / "weights.safetensors")
    state |= {f"o/{k}": v for k, v in load_weights(path / "optimizer.safetensors").items()}
    # A copy: a loader may map the file, which a test then damages.
    return {k: v.clone() for k, v in state.items()}


def _rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_writes_its_record(tmp_path: Path) -> None:
    seen: list[int] = []
    result = train(
        LineStage(_run(80)), _run(80), tmp_path, progress=lambda step, steps, row: seen.append(step)
    )
    assert result.figures["distance"] < 0.5
    assert seen == list(range(1, 81))
    record = json.loads((tmp_path / "text" / "run.json").read_text())
    assert record["complete"] and record["step"] == 80 and record["config"]["stage"] == "text"
    assert len(_rows(result.directory)) == 80
    assert (result.directory / "loss.svg").read_text().startswith("<svg")


def test_a_finished_stage_is_reused_without_training(tmp_path: Path) -> None:
    first = train(LineStage(_run()), _run(), tmp_path)
    again = train(LineStage(_run()), _run(), tmp_path)
    assert again.reused and not first.reused
    assert again.figures == first.figures


def test_other_settings_start_over_and_keep_the_old_run(tmp_path: Path) -> None:
    train(LineStage(_run(6)), _run(6), tmp_path)
    other = train(LineStage(_run(4)), _run(4), tmp_path)
    assert other.step == 4 and not other.reused
    assert json.loads((tmp_path / "text.previous" / "run.json").read_text())["step"] == 6


def test_settings_of_how_a_run_is_made_do_not_start_it_over(tmp_path: Path) -> None:
    """FREE names fields there are; a run that ended goes on with others of them, and is that of the first ones."""
    other = {
        "workers": 1,
        "save_every": 2,
        "keep": 5,
        "bad_samples": 0.5,
        "log_every": 3,
        "eval_every": 2,
        "recompute": True,
        "shard": True,
    }
    assert set(other) | {"compile", "graph"} == set(FREE)
    straight = train(LineStage(_run(6)), _run(6), tmp_path / "a")
    stopped = LineStage(_run(6))
    stopped.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        train(stopped, _run(6), tmp_path / "b")
    resumed = train(LineStage(_run(6, **other)), _run(6, **other), tmp_path / "b")
    assert not (tmp_path / "b" / "text.previous").exists()
    assert _weights(straight).keys() == _weights(resumed).keys()
    assert all(torch.equal(v, _weights(resumed)[k]) for k, v in _weights(straight).items())
    assert train(LineStage(_run(6)), _run(6), tmp_path / "b").reused


@pytest.mark.parametrize("stop_at", [0, 3])
def test_run_stopped_by_sigterm_and_resumed_equals_uninterrupted_run(tmp_path: Path, stop_at: int) -> None:
    run = _run(6)
    straight = train(LineStage(run), run, tmp_path / "a")
    stopped = LineStage(run)
    stopped.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt, match=f"saved at step {stop_at + 1} of 6"):
        train(stopped, run, tmp_path / "b")
    resumed = train(LineStage(run), run, tmp_path / "b")
    a, b = _weights(straight), _weights(resumed)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    losses = [[row["loss/square"] for row in _rows(r.directory)] for r in (straight, resumed)]
    assert losses[0] == losses[1]


def test_uneven_micro_batches_give_the_gradient_of_one_batch(tmp_path: Path) -> None:
    """Oracle: the mean over all items of the micro-batches, differentiated in one piece."""
    run = _run(1, micro_batches=4)
    stage = LineStage(run)
    result = train(stage, run, tmp_path)
    torch.manual_seed(0)
    moments = _weights(result)["o/main/line.layer.weight/exp_avg"]
    items = [stage.batch(i)[0] for i in range(4)]
    x, y = torch.cat([i[0] for i in items]), torch.cat([i[1] for i in items])
    from muomni.train.stage import step_seed

    torch.manual_seed(step_seed(run.seed, 0))
    line = Line()
    noise = []
    for i, (part, _) in enumerate(items):
        torch.manual_seed(step_seed(run.seed, 2, 0, 0, i))
        noise.append(0.01 * torch.randn(len(part)))
    ((line.layer(x)[:, 0] + torch.cat(noise) - y) ** 2).mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in line.layer.parameters() if p.grad is not None])
    expected = line.layer.weight.grad * min(1.0, 1.0 / float(gradient.norm())) * 0.1  # type: ignore[operator]
    torch.testing.assert_close(moments, expected, rtol=1e-5, atol=1e-6)


def test_a_non_finite_step_is_skipped_counted_and_leaves_no_trace(tmp_path: Path) -> None:
    """Oracle: the parameters before and after the poisoned step, from checkpoints of every step."""
    run = _run(4, save_every=1, keep=4)
    stage = LineStage(run)
    stage.poisoned = (2,)
    result = train(stage, run, tmp_path)
    assert result.skipped == 1
    from muomni.models.weights import load_weights

    folder = result.directory / "checkpoints"
    states = [
        {n: load_weights(folder / f"step-{s:08d}" / f"{n}.safetensors") for n in ("weights", "optimizer")}
        for s in (1, 2, 3, 4)
    ]
    assert all(torch.equal(v, states[2][n][k]) for n, s in states[1].items() for k, v in s.items())
    assert not torch.equal(
        states[2]["weights"]["line.layer.weight"], states[3]["weights"]["line.layer.weight"]
    )
    assert all(v.isfinite().all() for s in states[3].values() for v in s.values())
    rows = _rows(result.directory)
    assert rows[2]["loss/square"] is None and [row["skipped"] for row in rows] == [0, 0, 1, 1]


def test_checkpoint_of_another_size_is_one_line(tmp_path: Path) -> None:
    train(LineStage(_run()), _run(), tmp_path)
    other = dataclasses.replace(_run(), model=model("tiny"))
    with pytest.raises(CheckpointError, match=r"another size.*model\.size is nano") as error:
        train(LineStage(other), other, tmp_path)
    assert "\n" not in str(error.value)


def test_parent_of_another_size_is_one_line(tmp_path: Path) -> None:
    train(LineStage(_run()), _run(), tmp_path)
    with pytest.raises(CheckpointError, match="another size"):
        parent_checkpoint(tmp_path, parent="text", child="audio", config=model("base"))
    # Another dropout is another training of the same model.
    nano = model("nano")
    thinker = dataclasses.replace(nano.thinker, dropout=0.5)
    parent_checkpoint(
        tmp_path, parent="text", child="audio", config=dataclasses.replace(nano, thinker=thinker)
    )


def test_corrupt_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    run = _run(6, save_every=2, keep=3)
    straight = train(LineStage(run), run, tmp_path)
    expected = _weights(straight)
    weights = straight.directory / "checkpoints" / "step-00000006" / "weights.safetensors"
    payload = bytearray(weights.read_bytes())
    payload[-1] ^= 1
    weights.write_bytes(bytes(payload))
    again = train(LineStage(run), run, tmp_path)
    assert not again.reused and len(_rows(again.directory)) == 6
    assert all(torch.equal(expected[k], v) for k, v in _weights(again).items())


def test_learning_rate_warms_up_and_ends_at_its_minimum() -> None:
    config = OptimConfig(lr=1.0, min_lr_ratio=0.1, warmup_steps=4)
    rates = [learning_rate(config, step=s, steps=20) for s in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[3:], rates[4:], strict=False))


def test_vectors_and_embeddings_do_not_decay() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "layer": nn.Linear(2, 2)})
    optimizer = Optimizer(
        dict(model.named_parameters()), OptimConfig(lr=0.1, weight_decay=1.0, grad_clip=1e9)
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer.step(torch.tensor(0.0), 0.1)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"layer.weight"}
