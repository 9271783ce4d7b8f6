"""How a model is trained by several processes: gradients are summed over all of them before an update.

Each process takes every size-th micro-batch of a step, and counts are added up over all of them before anything is
divided, so a run is the same on one process and on many. FSDP2 is in sharded.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from muomni.config import RunConfig
from muomni.errors import UserError
from muomni.train import checkpoint
from muomni.train.compiled import Losses, loss_function
from muomni.train.optim import Optimizer
from muomni.train.stage import Stage, load_owned
from muomni.train.world import World
from muomni.train.writer import Form


class LossModule(nn.Module):
    """The losses as a module's forward, which is what DDP and FSDP wrap."""

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        """losses: `stage.losses`, or the same compiled."""
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, batch: Any, phase: str) -> dict[str, torch.Tensor]:
        """Called as losses(model, batch, phase)."""
        # Of its own memory each: FSDP2 hangs its hooks on what comes out, and warns of views.
        return {name: value.clone() for name, value in self.losses(self.model, batch, phase).items()}


class Alone(Form):
    """One process: gradients are where they are needed."""

    saves = True
    """Whether this process takes part in saving."""

    def __init__(self, stage: Stage, model: nn.Module, losses: Losses) -> None:
        """losses: `stage.losses`, or the same compiled."""
        self.stage, self.model, self.losses = stage, model, losses

    def __call__(self, batch: Any, phase: str) -> dict[str, torch.Tensor]:
        """The losses of a batch on the device, as `Stage.losses`."""
        return self.losses(self.model, batch, phase)

    def parameters(self, phase: str) -> dict[str, nn.Parameter]:
        """What this process updates in a phase, by name in the model."""
        return self.stage.parameters(self.model, phase)

    def passing(self, phase: str, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a batch; `last`: of this process in this step and phase."""
        return contextlib.nullcontext()

    def collect(self, phase: str) -> None:
        """After the last backward: `parameters` have the gradients summed over all processes."""

    def norm(self, phase: str, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """() norm of a phase's collected gradients, over all processes."""
        return torch.nn.utils.get_total_norm(gradients)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The model's parameters are whole inside, for evaluation by every process at once."""
        yield

    def restore(self, path: Path, optimizers: Mapping[str, Optimizer]) -> None:
        """Take over weights and moments of a complete checkpoint's directory, whoever wrote it.

        Raises CheckpointError for a missing, unexpected or differently shaped tensor.
        """
        saved = checkpoint.read(path)
        load_owned(self.model, saved.weights, saved=self.stage.saved, where=path)
        load_optimizers(optimizers, saved.optimizer)


class Replicated(Alone):
    """The whole model in every process, with DistributedDataParallel: gradients meet while backward goes on.

    A wrapper a phase: each waits for the gradients of its own parameters alone.
    """

    def __init__(self, stage: Stage, model: nn.Module, losses: Losses, world: World) -> None:
        """As `Alone`; all processes hold the same parameters. The main one saves."""
        super().__init__(stage, model, losses)
        self.saves = world.main
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        # Buffers are the stage's own: `after_step` makes them alike.
        buffers = {name for name, _ in model.named_buffers()}
        self._wrapped = {}
        for phase in stage.phases:
            module = LossModule(model, losses)
            others = (trained - stage.parameters(model, phase).keys()) | buffers
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                module, [f"model.{name}" for name in others]
            )
            wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True)
            # A lambda, for DDP looks at annotations and does not know those that are text.
            wrapped.register_comm_hook(None, lambda _, bucket: _summed(bucket))
            self._wrapped[phase] = wrapped

    def __call__(self, batch: Any, phase: str) -> dict[str, torch.Tensor]:
        """The losses of a batch on the device, as `Stage.losses`."""
        return self._wrapped[phase](batch, phase)

    def passing(self, phase: str, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients meet in the last backward only."""
        return contextlib.nullcontext() if last else self._wrapped[phase].no_sync()


def spread(stage: Stage, run: RunConfig, model: nn.Module, here: World) -> Alone:
    """The model as this process takes part in its training, by train.shard and train.compile.

    model: on its device, the same in every process. Raises UserError for settings that exclude each other.
    """
    device = next(model.parameters()).device
    if here.size == 1:
        return Alone(stage, model, loss_function(stage, run.train.compile, device=device))
    if not run.train.shard:
        return Replicated(stage, model, loss_function(stage, run.train.compile, device=device), here)
    if run.optim.name == "muon":
        raise UserError(
            "optim.name=muon: needs whole matrices, train.shard=true keeps rows; use adamw or shard=false."
        )
    if run.train.compile == "on":
        raise UserError(
            "train.compile=on: needs one graph, which train.shard=true breaks; use auto, off or shard=false."
        )
    # Here, because it loads all of torch.distributed.
    from muomni.train.sharded import Sharded

    return Sharded(stage, model, stage.losses, here)


def load_optimizers(optimizers: Mapping[str, Optimizer], state: Mapping[str, torch.Tensor]) -> None:
    """Each phase's optimizer takes its part of a state named `<phase>/<parameter>/<field>`."""
    for phase, optimizer in optimizers.items():
        prefix = f"{phase}/"
        optimizer.load({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def _summed(bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """Sums where DDP would take a mean: losses are divided by the count of all processes already."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
