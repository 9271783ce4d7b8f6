"""A stage that trains in milliseconds, with what is hard for several processes: two phases, odd shapes, noise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from muomni.config import OptimConfig, RunConfig, TrainConfig
from muomni.data.batch import Batch
from muomni.errors import UserError
from muomni.models.weights import newest_complete
from muomni.recipes import model as sized
from muomni.train.loop import Result, train
from muomni.train.stage import Figure, Parts, StageBase, generator
from muomni.train.step import Step
from muomni.train.world import world
from muomni.train.writer import Writer

WIDTH = 5
"""Rows that two processes cannot share evenly."""


class Toy(nn.Module):
    """A table, blocks, a frozen layer, a scalar, and a layer with one row."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, WIDTH))
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.out = nn.Linear(WIDTH, 1)
        self.judge = nn.Linear(1, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (n,) -> (n, 1)."""
        x = self.table[ids]
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.out(self.frozen(x)) * self.scale


@dataclass(frozen=True, kw_only=True)
class ToyBatch(Batch):
    """Some numbers to learn."""

    ids: torch.Tensor
    """(n,) int64; n differs between micro-batches."""
    position: int


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to happen at which micro-batch."""

    log: Path | None = None
    """Gets a line for each micro-batch that is used."""
    turn: int = 0
    """The run's number, before each line."""
    slow: float = 0.0
    """Seconds a micro-batch takes beside."""
    fail_at: int | None = None
    nan_at: int | None = None


class ToyStage(StageBase):
    """Phase "main" learns the parity of ids, "judge" to tell large ids; main's gradients reach the judge too."""

    name = "text"
    phases = ("main", "judge")
    saved = ("toy",)
    weights: Mapping[str, float] = MappingProxyType({"square": 1.0, "pleased": 0.1, "judged": 1.0})

    def __init__(self, run: RunConfig, wish: Wish | None = None) -> None:
        super().__init__(run)
        self.wish = wish or Wish()

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        return Parts(toy=Toy())

    def parameters(self, model: nn.Module, phase: str) -> dict[str, nn.Parameter]:
        return {
            n: p for n, p in super().parameters(model, phase).items() if ("judge" in n) == (phase == "judge")
        }

    def batch(self, position: int, parts: int = 1) -> list[ToyBatch]:
        if position == self.wish.fail_at:
            raise UserError(f"item {position}: cannot be read; remove it.")
        ids = torch.randint(7, (1 + position % 5,), generator=generator(0, position))
        return [ToyBatch(ids=ids, position=position)]

    def counts(self, batch: ToyBatch) -> dict[str, torch.Tensor | int]:
        return dict.fromkeys(self.weights, len(batch.ids))

    def losses(self, model: nn.Module, batch: ToyBatch, phase: str) -> dict[str, torch.Tensor]:
        toy = model.get_submodule("toy")
        assert isinstance(toy, Toy)
        if self.wish.log is not None and phase == "main" and toy.training:
            with self.wish.log.open("a") as file:
                file.write(f"{self.wish.turn} {batch.position}\n")
            time.sleep(self.wish.slow)
        predicted = toy(batch.ids)[:, 0]
        wanted = (batch.ids % 2).float() + 0.01 * torch.randn(len(batch.ids))
        judged = toy.judge(predicted[:, None])[:, 0]
        if phase == "judge":
            return {"judged": (judged - (batch.ids > 3).float()).square().sum()}
        bad = float("nan") if batch.position == self.wish.nan_at else 1.0
        return {"square": (predicted - wanted).square().sum() * bad, "pleased": judged.square().sum()}

    def fill(self, batch: ToyBatch) -> tuple[int, int]:
        return len(batch.ids), 5

    def evaluate(self, model: nn.Module, split: str) -> list[Figure]:
        toy = model.get_submodule("toy")
        assert isinstance(toy, Toy)
        value = float(toy(torch.arange(7)).sum())
        return [Figure(name="sum", value=value, baseline=0.0, baseline_name="zero")]


def toy_run(steps: int = 6, *, optim: dict[str, object] | None = None, **changes: object) -> RunConfig:
    """Without clipping, so that the norm's last bit reaches no parameter."""
    settings: dict[str, object] = {"steps": steps, "log_every": 1, "micro_batches": 4, **changes}
    return RunConfig(
        stage="text", model=sized("nano"), train=TrainConfig(**settings),  # type: ignore[arg-type]
        optim=OptimConfig(**{"lr": 0.05, "warmup_steps": 1, "grad_clip": 1e9, **(optim or {})}),  # type: ignore[arg-type]
    )  # fmt: skip


def train_toy(run: RunConfig, root: Path, wish: Wish | None = None) -> Result:
    """Train it."""
    return train(ToyStage(run, wish), run, root)


def copy_checkpoint(run: RunConfig, source: Path, target: Path) -> None:
    """Load the newest checkpoint of a stage's directory as this run's processes do, and save it as they do."""
    stage = ToyStage(run)
    torch.manual_seed(world().rank)  # Whatever is there before is replaced.
    step = Step(stage, run, stage.build(run, source))
    path = newest_complete(source)
    assert path is not None
    step.net.restore(path, step.optimizers)
    from muomni.train import checkpoint
    from muomni.train.stage import owned

    state = checkpoint.Checkpoint(
        weights=owned(step.model, stage.saved),
        optimizer={f"{p}/{k}": v for p, o in step.optimizers.items() for k, v in o.state().items()},
        record=checkpoint.record_of(path),
    )
    with Writer(target, keep=2, form=step.net) as writer:
        if step.net.saves:
            writer.start(state)
