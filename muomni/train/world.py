"""The processes of a run, started by torchrun: who they are, what they agree on, how they end."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from muomni.errors import ToldError, UserError

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets beside WORLD_SIZE."""


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it. Alone, every method is free."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes records, logs and prints."""
        return self.rank == 0

    def share(self, micro_batches: int) -> int:
        """Micro-batches of a step that each process takes. Raises UserError when they cannot be shared evenly."""
        if micro_batches % self.size:
            raise UserError(
                f"train.micro_batches: {micro_batches} cannot be shared evenly by {self.size} processes; set a "
                f"multiple of {self.size}, or start another number of processes."
            )
        return micro_batches // self.size

    def totals(self, counts: Mapping[str, torch.Tensor | int]) -> dict[str, torch.Tensor | int]:
        """Whole numbers by name, each summed over the processes; every process gives the same names."""
        if self.size == 1:
            return dict(counts)
        values = torch.stack([torch.as_tensor(value).to(torch.int64) for value in counts.values()])
        dist.all_reduce(values)
        return dict(zip(counts, values.unbind(), strict=True))

    def sums(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Scalars () on one device, each summed over the processes, on the device."""
        if self.size == 1:
            return list(values)
        together = torch.stack(list(values))
        dist.all_reduce(together)
        return list(together.unbind())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. Waits for all of them, not for the device."""
        return bool(self.totals({"flag": int(flag)})["flag"])

    def same(self, number: int) -> bool:
        """Whether every process gives the same number."""
        return self.size == 1 or int(self.totals({"number": number - self._of_main(number)})["number"]) == 0

    def wait(self) -> None:
        """Until every process is here."""
        self.any(False)

    @contextmanager
    def first(self) -> Iterator[None]:
        """The main process goes first, then all others: what it writes inside, they find."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def _of_main(self, number: int) -> int:
        value = torch.tensor(number)
        dist.broadcast(value, src=0)
        return int(value)


def world() -> World:
    """The processes that `Joined` brought together; otherwise this one alone."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def in_turn(items: Sequence[tuple[torch.Tensor, ...]]) -> list[tuple[torch.Tensor, ...]]:
    """What each process kept of its micro-batches, in the order of the step's micro-batches, on every process.

    items: tuples of tensors, the same number of them and the same shapes on every process.
    """
    size = world().size
    if size == 1 or not items:
        return list(items)
    columns: list[list[torch.Tensor]] = []
    for parts in zip(*items, strict=True):
        own = torch.stack(parts)
        found = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(found, own)
        # (size, n, ...): micro-batch i of process r is number i * size + r of the step.
        columns.append(list(torch.stack(found, dim=1).flatten(0, 1).unbind()))
    return list(zip(*columns, strict=True))


class Joined(AbstractContextManager[World]):
    """Inside, torchrun's processes are together; without torchrun there is one, and nothing happens.

    gloo on a CPU, NCCL on CUDA devices (one a process). An error in one process ends all: the first tells it, the
    others raise ToldError.
    """

    def __enter__(self) -> World:
        """Raises UserError for an environment that is not torchrun's, or more processes than CUDA devices."""
        self._store: Store | None = None
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return World()
        if missing := [name for name in NEEDED if name not in os.environ]:
            raise UserError(
                f"WORLD_SIZE is {size}, but {', '.join(missing)} of the environment is missing; start with "
                f"`torchrun --nproc-per-node {size} -m -- muomni train ...`, or unset WORLD_SIZE."
            )
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            local, n_devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= n_devices:
                raise UserError(
                    f"torchrun: process {local} of this machine has no CUDA device, there are {n_devices}; start "
                    f"with --nproc-per-node {n_devices}, or with CUDA_VISIBLE_DEVICES= to train on the CPU."
                )
            torch.cuda.set_device(local)
        # A store of our own: it outlives the group, and says who spoke first.
        self._store, rank, size = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if self._cuda else "gloo"
        dist.init_process_group(backend, store=self._store, rank=rank, world_size=size)
        self._log = logging.getLogger("muomni")
        self._level = self._log.level
        if rank:
            self._log.setLevel(logging.ERROR)
        return World(rank, size)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Raises ToldError when another process has told what went wrong, UserError when one has vanished."""
        if self._store is None:
            return
        here = world()
        self._log.setLevel(self._level)
        if kind is None:
            here.wait()
            dist.destroy_process_group()
            return
        first = self._first()
        if not self._cuda:
            # Not with NCCL, which would wait for processes that are gone.
            dist.destroy_process_group()
        if not first:
            raise ToldError(interrupted=issubclass(kind, KeyboardInterrupt)) from error
        if isinstance(error, RuntimeError) and _is_lost(error):
            raise UserError(
                f"process {here.rank} of {here.size} has lost another one, which was killed or cannot be reached; "
                "run again to go on from the last checkpoint."
            ) from error

    def _first(self) -> bool:
        """Whether no other process has told of an error yet."""
        assert self._store is not None
        try:
            return self._store.add("muomni/told", 1) == 1
        except dist.DistError:
            # The store's own process is gone, and it told of its error before.
            return False


def _is_lost(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "connection" in text
