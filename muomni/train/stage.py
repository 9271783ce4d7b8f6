"""The contract between a stage and the loop, and what stages share: parts, parents, seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from muomni.config import DEPENDS, ModelConfig, RunConfig
from muomni.data.items import Source, Split
from muomni.data.prepared import open_source
from muomni.data.quarantine import Quarantine
from muomni.data.usable import BEFORE_TRAINING
from muomni.errors import UserError
from muomni.models.weights import CheckpointError, load_weights, newest_complete
from muomni.settings import shaping, to_dict

Part = TypeVar("Part", bound=nn.Module)


class StageOrderError(UserError, RuntimeError):
    """A stage whose prerequisites are not trained yet."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One held-out figure with what a trivial method gets on the same items."""

    name: str
    value: float
    baseline: float
    baseline_name: str
    better: str = "lower"
    """lower or higher."""
    n: int = 0
    """Held-out items it is measured on."""


class Stage(Protocol):
    """What the loop needs of a stage."""

    run: RunConfig
    """What it is trained with; `batch` may ask it for the steps."""

    @property
    def name(self) -> str:
        """One of STAGES."""
        ...

    @property
    def parents(self) -> tuple[str, ...]:
        """Stages whose parts it loads."""
        ...

    @property
    def phases(self) -> tuple[str, ...]:
        """One optimizer each."""
        ...

    @property
    def saved(self) -> tuple[str, ...]:
        """Submodules it owns and saves."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each loss term."""
        ...

    @property
    def capturable(self) -> bool:
        """Whether losses and gradients can be part of a CUDA graph: nothing of them needs the host."""
        ...

    @property
    def gathered(self) -> list[Any]:
        """What forwards of this step left for `after_step`: tuples of tensors."""
        ...

    @property
    def slow_batches(self) -> bool:
        """Whether `batch` takes so much of a step that a process that makes batches is worth a core of a CPU."""
        ...

    @property
    def quarantine(self) -> Quarantine:
        """The samples it leaves out."""
        ...

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """The model with the parents' parts loaded; frozen parameters have requires_grad False.

        What is read before training is read here, so that workers share it.
        """
        ...

    def parameters(self, model: nn.Module, phase: str) -> dict[str, nn.Parameter]:
        """What a phase's optimizer updates, by name in the model."""
        ...

    def batch(self, position: int, parts: int = 1) -> list[Any]:
        """Training micro-batch number `position`, the same in every process, in one piece or some `parts` pieces.

        All pieces of one number of parts have the same shapes, whatever the position.
        """
        ...

    def takes(self, phase: str, batch: Any) -> bool:
        """Whether a phase's parameters are updated in the step of a batch, the same for all of a step."""
        ...

    def held_out(self, split: Split) -> Iterator[Any]:
        """One pass over a held-out split."""
        ...

    def counts(self, batch: Any) -> dict[str, torch.Tensor | int]:
        """Valid targets of each loss term, known before the forward."""
        ...

    def losses(self, model: nn.Module, batch: Any, phase: str) -> dict[str, torch.Tensor]:
        """Sums over the valid targets, under the keys of `counts`."""
        ...

    def after_step(self, model: nn.Module) -> None:
        """Commits what a forward gathered, once a step."""
        ...

    def gather(self, model: nn.Module) -> None:
        """Takes what a forward left in the model into `gathered`: a list that grows would break a compiled graph."""
        ...

    def set_mode(self, model: nn.Module) -> None:
        """Train mode, frozen parts in eval mode."""
        ...

    def fill(self, batch: Any) -> tuple[int, int]:
        """Positions used and positions there are, for tokens/s and the fill rate."""
        ...

    def evaluate(self, model: nn.Module, split: Split) -> list[Figure]:
        """Held-out figures with their trivial baselines; leaves the model in eval mode."""
        ...

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """Writes a few samples of a held-out split into a folder, which it makes, and gives some numbers about them.

        The same items each time; the model is in eval mode and stays so.
        """
        ...


class StageBase:
    """Defaults most stages share; a stage may replace any of them."""

    name: str = ""
    parents: tuple[str, ...] = ()
    phases: tuple[str, ...] = ("main",)
    saved: tuple[str, ...] = ()
    weights: Mapping[str, float] = MappingProxyType({})
    capturable: bool = True
    slow_batches: bool = False

    def __init__(self, run: RunConfig) -> None:
        """Keep the run; data are read in `build`, because they need the run's directory."""
        self.run = run
        self.gathered: list[Any] = []
        self.config: ModelConfig = run.model
        self.quarantine = Quarantine(run.stage, share=run.train.bad_samples)
        self.source: Source = open_source(run.data)

    def parameters(self, model: nn.Module, phase: str) -> dict[str, nn.Parameter]:
        """Every trainable parameter."""
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def takes(self, phase: str, batch: Any) -> bool:
        """Always."""
        return True

    def after_step(self, model: nn.Module) -> None:
        """Nothing to commit."""

    def gather(self, model: nn.Module) -> None:
        """Nothing to take."""

    def set_mode(self, model: nn.Module) -> None:
        """Train mode for the parts this stage owns, eval mode for all others."""
        for name, part in model.named_children():
            part.train(name in self.saved)

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """No samples."""
        return {}

    def need(self, what: str, of: Callable[[Split], Sized]) -> None:
        """Raise UserError when a split that a run reads has nothing usable."""
        for split in BEFORE_TRAINING:
            if not len(of(split)):
                raise UserError(
                    f"stage {self.name}: data {self.run.data} has no usable {what} in split {split}; "
                    "add a set that has (`muomni data list` and `muomni data stats` say)."
                )

    def device(self, model: nn.Module) -> torch.device:
        """Where the model is."""
        return next(model.parameters()).device


class Parts(nn.Module):
    """Named parts of an OmniModel, only those a stage needs, under the same submodule names."""

    def __init__(self, **parts: nn.Module) -> None:
        """Register each part under its keyword."""
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def part(model: nn.Module, name: str, kind: type[Part]) -> Part:
    """A submodule with its type. Raises TypeError when it is another one."""
    found = model.get_submodule(name)
    if not isinstance(found, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}, got {type(found).__name__}.")
    return found


def freeze(module: nn.Module) -> nn.Module:
    """Stop a part's training: no gradients, eval mode."""
    module.requires_grad_(False)
    return module.eval()


def owned(model: nn.Module, saved: Sequence[str]) -> dict[str, torch.Tensor]:
    """The state a stage saves: parameters and persistent buffers of its own submodules."""
    return {k: v for k, v in model.state_dict().items() if k.split(".", 1)[0] in saved}


def load_owned(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, saved: Sequence[str], where: Path
) -> None:
    """Copy a checkpoint's tensors into the model's own submodules.

    Raises CheckpointError for a missing, unexpected or differently shaped tensor.
    """
    target = owned(model, saved)
    wrong = sorted(set(target) ^ set(state)) or sorted(
        k for k, v in target.items() if v.shape != state[k].shape
    )
    if wrong:
        raise CheckpointError(
            f"{where}: does not fit this configuration ({len(wrong)} tensors differ, the first is {wrong[0]}); "
            f"use the size and settings it was trained with, or another --run."
        )
    with torch.no_grad():
        for name, value in target.items():
            value.copy_(state[name])


def parent_checkpoint(root: Path, *, parent: str, child: str, config: ModelConfig) -> Path:
    """The newest complete checkpoint of a prerequisite stage.

    Raises StageOrderError when there is none or it is unfinished, CheckpointError when its model differs.
    """
    record = root / parent / "run.json"
    finished = record.is_file() and json.loads(record.read_text()).get("complete", False)
    path = newest_complete(root / parent) if finished else None
    if path is None:
        raise StageOrderError(
            f"stage {child} needs stage {parent}: run `muomni train --stage {parent} --run {root}` first."
        )
    check_same_model(
        json.loads((path / "run.json").read_text())["config"]["model"],
        config,
        keys=DEPENDS[parent],
        where=path,
    )
    return path


def check_same_model(
    saved: Mapping[str, Any], config: ModelConfig, *, keys: Sequence[str], where: Path
) -> None:
    """Raise CheckpointError when a saved model's configuration differs in one of `keys`, naming the first.

    What training alone depends on may differ.
    """
    found, ours = shaping(saved, ModelConfig), shaping(to_dict(config), ModelConfig)
    for key in keys:
        theirs, mine = found.get(key), ours[key]
        if theirs == mine:
            continue
        if isinstance(mine, dict) and isinstance(theirs, dict):
            field = next(k for k in [*mine, *theirs] if mine.get(k) != theirs.get(k))
            key, theirs, mine = f"{key}.{field}", theirs.get(field), mine.get(field)
        raise CheckpointError(
            f"{where}: holds a model of another size (model.{key} is {theirs}, this run has {mine}); "
            f"use the size it was trained with, or another --run."
        )


def load_parent(
    model: nn.Module, root: Path, *, parent: str, parts: Sequence[str], child: str, run: RunConfig
) -> None:
    """Load some parts of a finished prerequisite into the model."""
    path = parent_checkpoint(root, parent=parent, child=child, config=run.model)
    state = load_weights(path / "weights.safetensors")
    chosen = {k: v for k, v in state.items() if k.split(".", 1)[0] in parts}
    load_owned(model, chosen, saved=parts, where=path)


def step_seed(seed: int, *numbers: int) -> int:
    """A 63-bit seed that depends on all the numbers: the state of step n needs no history."""
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, *numbers: int) -> torch.Generator:
    """A CPU generator for `step_seed` of the numbers."""
    return torch.Generator().manual_seed(step_seed(seed, *numbers))
