"""A recorded step is the step: nothing of the host's is baked into it. On a CPU a tape stands for the CUDA graph."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from muomni_kernels.registry import use_backend
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from muomni.config import STAGES, OptimConfig, RunConfig
from muomni.errors import UserError
from muomni.train.graphed import recorder
from muomni.train.stages import stage as make_stage
from muomni.train.step import Step

SmallRun = Callable[..., RunConfig]
CAPTURABLE = [name for name in STAGES if name not in ("audio", "vocoder")]
pytestmark = pytest.mark.usefixtures("small_data")


def _storages(value: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)}


class Tape(TorchDispatchMode):
    """Every operator of a piece of work with the very tensors and numbers it had, as a CUDA graph keeps them.

    A replay runs the operators again on these tensors and writes the results where they were the first time; no line
    of Python above them runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.entries.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.entries:
            result = func(*args, **kwargs)
            inputs = _storages((args, kwargs))
            for kept, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(result), strict=True):
                # What shares memory with an input is a view, or was written in place.
                if isinstance(kept, torch.Tensor) and not _storages(kept) & inputs:
                    kept.copy_(new)


def tape(work: Callable[[], None]) -> Callable[[], None]:
    kept = Tape()
    with kept:
        work()

    @torch.no_grad()
    def replay() -> None:
        kept.replay()

    return replay


def _steps(
    run: RunConfig, trained: Path, root: Path, *, record: Any, n: int = 4, parts: int = 1, device: str = "cpu"
) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]], Step]:
    """State after n steps, and what each saw."""
    root.mkdir()
    shutil.copy(trained / "tokenizer.json", root)
    stage = make_stage(run)
    for parent in stage.parents:
        shutil.copytree(trained / parent, root / parent)
    torch.manual_seed(0)
    model = stage.build(run, root).to(device)
    stage.set_mode(model)
    step = Step(stage, run, model, record=record)
    seen = []
    for number in range(n):

        def fetch(parts: int, number: int = number) -> list[list[Any]]:
            return [stage.batch(2 * number + i, parts) for i in range(2)]

        taken = step(fetch(parts), fetch, step=number)
        assert not taken.bad
        seen.append({k: v.clone() for k, v in taken.seen.items()})
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state |= {f"o/{k}": v.clone() for o in step.optimizers.values() for k, v in o.state().items()}
    return state, seen, step


@pytest.fixture(autouse=True)
def _kernels_of_a_device() -> Iterator[None]:
    """The kernels of a CPU read lengths and targets on the host; these are what a GPU may run too."""
    with use_backend("attention", "sdpa_mask"), use_backend("linear_cross_entropy", "reference"):
        yield


def _compare(name: str, run: RunConfig, trained: Path, tmp_path: Path, **options: Any) -> Step:
    eager, seen, _ = _steps(run, trained, tmp_path / "eager", record=None, **options)
    played, same, step = _steps(run, trained, tmp_path / "tape", record=tape, **options)
    for one, other in zip(seen, same, strict=True):
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-6, msg=key)
    for key, value in eager.items():
        if value.is_floating_point():
            # The rate is float32 in a recording and float64 outside.
            torch.testing.assert_close(played[key], value, rtol=2e-3, atol=2e-5, msg=key)
    return step


@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_recorded_step_is_the_step(name: str, trained: Path, tmp_path: Path, small_run: SmallRun) -> None:
    """Rates, counts, seeds of dropout, batches and codebook statistics differ in all of the four steps."""
    run = small_run(name, micro_batches=2)
    if name == "codec":
        # What so few frames leave for the last levels are near ties, which rounding decides.
        codec = dataclasses.replace(run.model.codec, n_codebooks=4)
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, codec=codec))
    step = _compare(name, run, trained, tmp_path)
    assert step._gradient.keys() == step._update.keys() == set(make_stage(run).phases)


def test_averages_and_spikes_are_recorded_and_muons_update_is_not(
    trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    for number, options in enumerate(
        (
            {"ema_decay": 0.9, "spike_sigma": 50.0, "spike_window": 2},
            {"moments": "bf16"},
            {"name": "muon", "schedule": "wsd"},
        )
    ):
        run = dataclasses.replace(
            small_run("text", micro_batches=2), optim=OptimConfig(lr=2e-3, warmup_steps=2, **options)
        )
        folder = tmp_path / str(number)
        folder.mkdir()
        step = _compare("text", run, trained, folder)
        assert bool(step._gradient) and bool(step._update) == ("name" not in options)


def test_pieces_are_recorded_and_another_number_of_parts_anew(
    trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    run = small_run("omni", micro_batches=2, batch_tokens=1_024)
    step = _compare("omni", run, trained, tmp_path, parts=2)
    stage = step.stage
    with pytest.raises(ValueError, match=r"recorded as .*, got"):
        step([stage.batch(0, 1)], lambda parts: [stage.batch(0, parts)], step=4)
    step.forget()
    taken = step([stage.batch(0, 1)], lambda parts: [stage.batch(0, parts)], step=4)
    assert not taken.bad


def test_a_recording_that_runs_a_step_changes_nothing_itself(
    trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    """Oracle: a recorder that runs the work many times before it keeps it, as a capture's warm-up does."""

    def often(work: Callable[[], None]) -> Callable[[], None]:
        for _ in range(3):
            work()
        return tape(work)

    run = small_run("codec", micro_batches=2)
    once, seen, _ = _steps(run, trained, tmp_path / "once", record=tape)
    more, same, _ = _steps(run, trained, tmp_path / "often", record=often)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(seen, same, strict=True) for k in a)
    assert all(torch.equal(value, more[key]) for key, value in once.items())


def test_automatic_choice_records_on_cuda_alone_and_says_why_not(small_run: SmallRun) -> None:
    cpu, text, audio = torch.device("cpu"), make_stage(small_run("text")), make_stage(small_run("audio"))
    assert recorder(text, small_run("text").train, device=cpu) is None
    on = small_run("text", graph="on").train
    with pytest.raises(
        UserError, match=r"^train\.graph=on: needs CUDA, this run is on cpu; use auto or off\.$"
    ):
        recorder(text, on, device=cpu)
    with pytest.raises(UserError, match="stage audio reads lengths on the host"):
        recorder(audio, on, device=torch.device("cuda"))
    with pytest.raises(UserError, match="one process only"):
        recorder(text, on, device=torch.device("cuda"), alone=False)
    assert recorder(audio, small_run("audio").train, device=torch.device("cuda")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_captured_step_is_the_step(
    name: str, compiled: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    """Oracle: the same steps without a graph; without dropout, whose masks need not be the same ones."""
    found = []
    for graph in ("off", "on"):
        run = small_run(name, micro_batches=2, graph=graph, compile=compiled, precision="fp32", augment=False)
        if name == "talker":
            still = dataclasses.replace(run.model.talker, dropout=0.0)
            run = dataclasses.replace(run, model=dataclasses.replace(run.model, talker=still))
        found.append(_steps(run, trained, tmp_path / graph, record=None, device="cuda")[:2])
    for one, other in zip(*(seen for _, seen in found), strict=True):
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-5, msg=key)
    # What AdamW's first moments say of the gradients.
    for key, value in found[0][0].items():
        if key.endswith("/exp_avg"):
            scale = float(value.abs().max())
            torch.testing.assert_close(found[1][0][key], value, rtol=0.05, atol=0.02 * scale + 1e-9, msg=key)
