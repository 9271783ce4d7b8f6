"""Every stage's losses as one compiled graph: no break, no second compilation, the same numbers."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from muomni.config import STAGES, RunConfig
from muomni.data.batch import to_device
from muomni.train import loop, parallel
from muomni.train.compiled import loss_function
from muomni.train.stages import stage as make_stage

pytestmark = pytest.mark.usefixtures("small_data")
SmallRun = Callable[..., RunConfig]
N_BATCHES = 3
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No graphs of the test before."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _build(run: RunConfig, root: Path) -> tuple[Any, torch.nn.Module]:
    torch.manual_seed(0)
    stage = make_stage(run)
    model = stage.build(run, root)
    stage.set_mode(model)
    # A compiled graph draws other dropout masks from the same seed.
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]
    return stage, model


def _sums_and_gradients(
    losses: Callable[..., dict[str, torch.Tensor]], model: torch.nn.Module, stage: Any, batch: Any
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Means of the terms, as the loop makes them, and the gradient of their weighted sum."""
    counts = stage.counts(batch)
    wide = {
        k: v.double() for k, v in vars(batch).items() if isinstance(v, torch.Tensor) and v.is_floating_point()
    }
    batch = dataclasses.replace(batch, **wide)
    sums = losses(model, to_device(batch, CPU), stage.phases[0])
    means = {k: v / counts[k] for k, v in sums.items()}
    model.zero_grad(set_to_none=True)
    torch.stack([stage.weights[k] * v for k, v in means.items()]).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in means.items()}, gradients


@pytest.mark.parametrize("name", STAGES)
def test_losses_are_one_graph_with_the_same_numbers(name: str, trained: Path, small_run: SmallRun) -> None:
    stage, model = _build(small_run(name), trained)
    batches = [stage.batch(i)[0] for i in range(N_BATCHES)]
    # In float64, where another backend of an op (a traced call has others than an eager one) is no excuse.
    model.double()
    compiled = loss_function(stage, "on", device=CPU, backend="aot_eager")
    for i, batch in enumerate(batches):
        expected, d_expected = _sums_and_gradients(stage.losses, model, stage, batch)
        if name == "codec":
            statistics = _statistics(stage, model)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            found, d_found = _sums_and_gradients(compiled, model, stage, batch)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert d_found.keys() == d_expected.keys()
        for key, value in d_expected.items():
            torch.testing.assert_close(d_found[key], value, rtol=1e-6, atol=1e-6, msg=key)
        if name == "codec":
            stage.gather(model)
            torch.testing.assert_close(stage.gathered, statistics)
            stage.gathered.clear()
    assert not counters["graph_break"], counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", ["text", "codec"])
def test_a_compiled_run_logs_the_losses_of_an_eager_one(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "loss_function", functools.partial(loss_function, backend="aot_eager"))
    rows = []
    for choice in ("off", "on"):
        run = small_run(name, steps=3, micro_batches=2, compile=choice)
        result = loop.train(make_stage(run), run, tmp_path / choice)
        lines = (result.directory / "metrics.jsonl").read_text().splitlines()
        other = {"tokens_per_second", "mfu", "memory_mib"}
        rows.append([{k: v for k, v in json.loads(line).items() if k not in other} for line in lines])
        # Forward, statistics and k micro-batches: one graph.
        assert counters["stats"]["unique_graphs"] == (choice == "on")
    assert len(rows[0]) == 3
    for eager, compiled in zip(*rows, strict=True):
        assert compiled == pytest.approx(eager, rel=1e-3)


def test_a_graph_break_raises_and_is_not_worked_around() -> None:
    class Broken:
        def losses(self, model: torch.nn.Module, batch: torch.Tensor, phase: str) -> dict[str, torch.Tensor]:
            return {"x": batch * float(batch.sum().item() > 0) if batch.sum() > 0 else -batch}

    broken: Any = Broken()
    compiled = loss_function(broken, "on", device=CPU, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(torch.nn.Linear(1, 1), torch.ones(3), "main")


def test_automatic_choice_compiles_on_cuda_alone(small_run: SmallRun) -> None:
    stage = make_stage(small_run("text"))
    assert loss_function(stage, "auto", device=CPU) == loss_function(stage, "off", device=CPU) == stage.losses
    # torch.compile traces at the first call: no GPU is needed to see the choice.
    assert loss_function(stage, "auto", device=torch.device("cuda")) != stage.losses
    assert loss_function(stage, "off", device=torch.device("cuda")) == stage.losses


def _statistics(stage: Any, model: torch.nn.Module) -> list[Any]:
    stage.gather(model)
    kept = list(stage.gathered)
    stage.gathered.clear()
    return kept
