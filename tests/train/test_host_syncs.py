"""No step waits for the device: dispatch inspection on a CPU, CUDA's own sync check on a GPU."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import muomni_kernels
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import muomni
from muomni.config import STAGES, RunConfig
from muomni.recipes import debug
from muomni.train import loop
from muomni.train.stages import stage as make_stage

SmallRun = Callable[..., RunConfig]

READS = {
    "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "unique_dim",
    "_unique", "_unique2", "unique_consecutive", "bincount",
}  # fmt: skip
"""ATen operations whose host side needs a value of the device, under whatever Python spelling."""
COPIES = {"tolist", "numpy", "cpu", "__array__"}
"""Methods of a tensor that copy to the host; a CPU tensor never reaches the dispatcher with them."""


PACKAGE, KERNELS = (f"{Path(str(module.__file__)).parent}{os.sep}" for module in (muomni, muomni_kernels))


def _place() -> str | None:
    """file:line of the innermost frame of ours, or None inside the kernels.

    What a kernel's form for the CPU reads, its form for the GPU does not: tests/kernels/test_gpu.py.
    """
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(KERNELS):
            return None
        if name.startswith(PACKAGE):
            return f"{name.removeprefix(PACKAGE)}:{frame.f_lineno}"
        if name.endswith(Path(__file__).name) and frame.f_code.co_name not in _OWN:
            return f"{Path(__file__).name}:{frame.f_lineno}"
        frame = frame.f_back
    return None


class Reads:
    """Collects every place that reads a tensor while it is switched on."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self.on = False

    def note(self, name: str) -> None:
        place = _place() if self.on else None
        if place is not None:
            self.places.append(f"{place} {name}")

    @contextmanager
    def during(self, on: bool = True) -> Iterator[None]:
        before, self.on = self.on, on
        try:
            yield
        finally:
            self.on = before

    @contextmanager
    def modes(self) -> Iterator[None]:
        with _Calls(self), _Dispatch(self):
            yield


class _Dispatch(TorchDispatchMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.rpartition("::")[2]
        if name in READS:
            self.reads.note(name)
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
                self.reads.note(f"{name} with a mask")
        elif name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self.reads.note(name)
        elif (
            name == "_to_copy" and str((kwargs or {}).get("device")) == "cpu" and args[0].device.type != "cpu"
        ):
            self.reads.note("copy to the host")
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in COPIES:
            self.reads.note(func.__name__)
        return func(*args, **(kwargs or {}))


_OWN = {"note", "during", "modes", "__torch_dispatch__", "__torch_function__", "_place"}


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(), lambda x: bool(x.sum() > 0), lambda x: int(x.sum()), lambda x: [0, 1][x[0].int()],
        lambda x: x.tolist(), lambda x: x.numpy(), lambda x: x.cpu(), lambda x: x[x > 0], lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0), lambda x: torch.equal(x, x), lambda x: x.unique(),
        lambda x: x.repeat_interleave(x.long()), lambda x: x.__setitem__(x > 0, torch.ones(3)),
    ],
)  # fmt: skip
def test_every_way_to_read_a_tensor_is_noticed(read: Callable[[torch.Tensor], Any]) -> None:
    reads = Reads()
    with reads.modes():
        with reads.during():
            read(torch.ones(3))
        counted = len(reads.places)
        read(torch.ones(3))
    assert counted and len(reads.places) == counted


def test_work_on_the_device_is_no_read() -> None:
    reads = Reads()
    x = torch.ones(3, requires_grad=True)
    with reads.modes(), reads.during():
        torch.where(x > 0, x, -x).softmax(0)[torch.tensor([0, 1])].sum().backward()
        x.data.masked_fill_(x > 0, 0.0).copy_(torch.ones(3)).cumsum(0).argsort()
    assert reads.places == []


OPTIONS = {
    "default": {},
    "all": {"name": "muon", "schedule": "wsd", "ema_decay": 0.9, "spike_sigma": 3.0, "spike_window": 2},
}


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", STAGES)
def test_a_step_reads_nothing_back(
    name: str,
    options: str,
    trained: Path,
    tmp_path: Path,
    small_run: SmallRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches, their counts and their fill are made on the host from host tensors, and are left out."""
    run = _with_options(small_run(name, steps=4, micro_batches=2), OPTIONS[options])
    reads, steps = Reads(), []
    stage = make_stage(run)
    for method in ("counts", "fill"):
        _watch(monkeypatch, stage, method, reads)
    plain = loop._Trainer.train_step

    def train_step(trainer: Any, batches: Iterator[Any]) -> None:
        def unwatched() -> Iterator[Any]:
            while True:
                with reads.during(False):
                    batch = next(batches)
                yield batch

        # The codec starts its codebooks by k-means in a process's first step, and the second looks whether it was kept.
        with reads.modes(), reads.during(trainer.step > 1):
            plain(trainer, unwatched())
        steps.append(trainer.step)

    monkeypatch.setattr(loop._Trainer, "train_step", train_step)
    result = loop.train(stage, run, _root(trained, tmp_path, stage), device="cpu")
    assert steps == [1, 2, 3, 4] and result.skipped == 0
    assert reads.places == []


def _watch(monkeypatch: pytest.MonkeyPatch, stage: Any, method: str, reads: Reads) -> None:
    plain = getattr(stage, method)

    def unwatched(batch: Any) -> Any:
        with reads.during(False):
            return plain(batch)

    monkeypatch.setattr(stage, method, unwatched)


def _with_options(run: RunConfig, options: dict[str, Any]) -> RunConfig:
    import dataclasses

    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, **options))


def _root(trained: Path, tmp_path: Path, stage: Any) -> Path:
    """A run directory with the prerequisites alone."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(trained / "tokenizer.json", root)
    for parent in make_stage(debug("nano", stage.name)).parents:
        shutil.copytree(trained / parent, root / parent)
    return root


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", STAGES)
def test_a_step_on_a_gpu_never_waits(
    name: str,
    options: str,
    trained: Path,
    tmp_path: Path,
    small_run: SmallRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CUDA itself raises at a sync, from the second step on: the first compiles and captures."""
    run = _with_options(small_run(name, steps=4), OPTIONS[options])
    stage = make_stage(run)
    plain = loop._Trainer.train_step
    steps = []

    def train_step(trainer: Any, batches: Iterator[Any]) -> None:
        def fetched() -> Iterator[Any]:
            while True:
                torch.cuda.set_sync_debug_mode("default")
                batch = next(batches)
                torch.cuda.set_sync_debug_mode("error" if trainer.step else "default")
                yield batch

        try:
            plain(trainer, fetched())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        steps.append(trainer.step)

    monkeypatch.setattr(loop._Trainer, "train_step", train_step)
    loop.train(stage, run, _root(trained, tmp_path, stage), device="cuda")
    assert steps == [1, 2, 3, 4]
