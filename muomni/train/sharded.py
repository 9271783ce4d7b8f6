"""FSDP2: every process keeps its rows of the trained parameters, of their gradients and moments, and saves them.

A block's parameters are whole only while it runs. Optimizer and averages see a process's rows as plain tensors: what
they do, they do element by element. Checkpoints are safetensors through torch.distributed.checkpoint, without its
pickled metadata, and load on any number of processes.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_rows
from torch.distributed.checkpoint.state_dict_saver import save as save_rows
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from muomni.models.weights import CheckpointError, save_weights
from muomni.train import checkpoint
from muomni.train.checkpoint import Checkpoint
from muomni.train.compiled import Losses
from muomni.train.optim import Optimizer
from muomni.train.parallel import Alone, LossModule, load_optimizers
from muomni.train.stage import Stage, owned
from muomni.train.world import World

WHOLE = "weights.safetensors"
"""Whole weights, which a finished stage has."""


class Sharded(Alone):
    """The trained parameters split by rows over the processes. Frozen ones, scalars and very short ones stay whole."""

    def __init__(self, stage: Stage, model: nn.Module, losses: Losses, world: World) -> None:
        """As `Alone`; all processes hold the same parameters, of which each then keeps its rows."""
        super().__init__(stage, model, losses)
        self.world = world
        mesh = init_device_mesh(next(model.parameters()).device.type, (world.size,))
        self._host = init_device_mesh("cpu", (world.size,))
        # Saving has a group of its own: its thread must not answer what the training thread asks.
        savers = dist.new_group(backend="gloo")
        assert isinstance(savers, dist.ProcessGroup)
        self._savers = savers
        whole = {p for p in model.parameters() if not (p.requires_grad and _has_rows_for_all(p, world.size))}
        for name, module in model.named_modules():
            if name.split(".")[-2:-1] == ["blocks"] and not whole.issuperset(module.parameters()):
                fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        self._root = LossModule(model, losses)
        fully_shard(self._root, mesh=mesh, reshard_after_forward=False, ignored_params=whole)
        for module in self._units():
            # Sums: losses are divided by the count of all processes already.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        self._split = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
        self._rows = {name: nn.Parameter(p.to_local().detach()) for name, p in self._split.items()}

    def _units(self) -> list[FSDPModule]:
        return [module for module in self._root.modules() if isinstance(module, FSDPModule)]

    def __call__(self, batch: Any, phase: str) -> dict[str, torch.Tensor]:
        """The losses of a batch on the device, as `Stage.losses`."""
        return self._root(batch, phase)

    def parameters(self, phase: str) -> dict[str, nn.Parameter]:
        """This process's rows, in the memory of the split parameters, and the parameters that stay whole."""
        return {name: self._rows.get(name, p) for name, p in super().parameters(phase).items()}

    @torch.no_grad()
    def collect(self, phase: str) -> None:
        """Hand the rows' gradients to `parameters`, and add up those of the parameters that stay whole."""
        wanted, alike = super().parameters(phase).keys(), []
        for name, p in self.model.named_parameters():
            if name in wanted and p.grad is not None and name not in self._rows:
                alike.append(p.grad)
                continue
            if name in wanted and isinstance(p.grad, DTensor):
                self._rows[name].grad = p.grad.to_local()
            p.grad = None
        if alike:
            flat = torch.cat([g.flatten() for g in alike])
            dist.all_reduce(flat)
            for gradient, value in zip(alike, flat.split([g.numel() for g in alike]), strict=True):
                gradient.copy_(value.view_as(gradient))

    def norm(self, phase: str, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """() norm over the rows of all processes."""
        there = {n: p.grad for n, p in self.parameters(phase).items() if p.grad is not None}
        squares = next(iter(there.values())).new_zeros(2)
        for name, gradient in there.items():
            squares[int(name in self._rows)] += gradient.square().sum()
        dist.all_reduce(squares[1])
        return squares.sum().sqrt()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All parameters are whole and stay so inside, however evaluation calls the parts."""
        units = self._units()
        for module in units:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in units:
                module.set_reshard_after_forward(module is not self._root, recurse=False)
                module.reshard()

    def restore(self, path: Path, optimizers: Mapping[str, Optimizer]) -> None:
        """As `Alone.restore`; this process reads its rows."""
        weights = self.local(owned(self.model, self.stage.saved))
        moments = {f"{phase}/{k}": v for phase, o in optimizers.items() for k, v in o.state().items()}
        found = self._read(path, {**weights, **moments})
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(found[name])
        load_optimizers(optimizers, {name: found[name] for name in moments})

    def local(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """This process's part of the model's state."""
        return {name: v.to_local() if isinstance(v, DTensor) else v for name, v in state.items()}

    def own(self, state: Checkpoint) -> Checkpoint:
        """This process's rows; at a stage's end the weights whole, and on the main process alone."""
        weights = self.local(state.weights)
        if state.record["complete"]:
            gathered = {name: self._gathered(name, value) for name, value in weights.items()}
            weights = gathered if self.world.main else {}
        return dataclasses.replace(state, weights=weights)

    def _gathered(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """A weight of all processes, on the CPU."""
        p = self._split.get(name)
        if p is None:
            return value
        rows = DTensor.from_local(
            value, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
        )
        return rows.full_tensor().cpu()

    def _placed(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Rows on the CPU as part of the whole tensor; anything else as it is. name: of a weight or a moment."""
        of = name.split("/")[1] if "/" in name else name
        if of not in self._split or value.shape != self._rows[of].shape:
            return value
        p = self._split[of]
        return DTensor.from_local(
            value, self._host, [Shard(0)], run_check=False, shape=p.shape, stride=p.stride()
        )

    def save(self, stage_dir: Path, state: Checkpoint, *, keep: int) -> Path:
        """`checkpoint.save` by all processes: each writes its rows, the main one all else."""
        if self.world.main:
            told = False

            def write(aside: Path, state: Checkpoint) -> None:
                nonlocal told
                told = True
                self._tell(os.getpid())
                self._write(aside, state)

            try:
                return checkpoint.save(stage_dir, state, keep=keep, write=write)
            finally:
                if not told:
                    self._tell(0)
        pid = self._tell(0)
        if pid:
            self._write(checkpoint.aside(stage_dir, state, pid=pid), state)
        return checkpoint.place(stage_dir, state)

    def _tell(self, number: int) -> int:
        """What the main process says."""
        value = torch.tensor(number)
        dist.broadcast(value, src=0, group=self._savers)
        return int(value)

    def _write(self, aside: Path, state: Checkpoint) -> None:
        """This process's files; each is synced. Raises on every process what one of them met."""
        rows = {name: self._placed(name, value) for name, value in state.optimizer.items()}
        if not state.record["complete"]:
            rows |= {name: self._placed(name, value) for name, value in state.weights.items()}
        writer = HuggingFaceStorageWriter(str(aside), save_distributed=True)
        try:
            save_rows(rows, storage_writer=writer, process_group=self._savers)
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error
        if state.record["complete"] and self.world.main:
            save_weights(state.weights, aside / WHOLE)

    def _read(self, path: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """This process's part of a checkpoint, on the CPU. like: tensors of the names and local shapes wanted."""
        wanted = {name: self._placed(name, torch.empty_like(v, device="cpu")) for name, v in like.items()}
        reader = HuggingFaceStorageReader(str(path))
        there = reader.read_metadata().state_dict_metadata
        wrong = sorted(wanted.keys() ^ there.keys()) or sorted(
            name for name, value in wanted.items() if value.shape != getattr(there[name], "size", None)
        )
        if wrong:
            raise CheckpointError(
                f"{path}: does not fit this configuration ({len(wrong)} tensors differ, the first is {wrong[0]}); "
                "use the size and settings it was trained with, or another --run."
            )
        load_rows(wanted, storage_reader=reader, process_group=self._savers)
        return self.local(wanted)


def load_whole(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a sharded checkpoint, whole, on the CPU; by this process alone."""
    reader = HuggingFaceStorageReader(str(path))
    state: dict[str, Any] = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in reader.read_metadata().state_dict_metadata.items()
        if isinstance(meta, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        # It warns that this process loads alone, which is what is asked for.
        warnings.simplefilter("ignore", UserWarning)
        load_rows(state, storage_reader=reader, no_dist=True)
    return state


def _has_rows_for_all(parameter: torch.Tensor, size: int) -> bool:
    """Whether every process gets at least one row, as torch.chunk deals them out."""
    if parameter.ndim == 0:
        return False
    n_rows = len(parameter)
    return math.ceil(n_rows / size) * (size - 1) < n_rows
