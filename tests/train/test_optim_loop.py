"""Faults, averages, precision and the collector in the loop, on a stage with two losses that counts differently."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import OptimConfig, RunConfig, TrainConfig
from muomni.models.weights import load_weights, newest_complete
from muomni.recipes import model
from muomni.train import loop
from muomni.train.faults import MAX_ROLLBACKS, DivergedError
from muomni.train.loop import Result, train
from muomni.train.stage import Figure, Parts, StageBase, generator

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
N_ITEMS = 32


class Net(nn.Module):
    """Two layers, the first with the name of a block's."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 8)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.blocks[0](x)))


class TwoLosses(StageBase):
    """Squares over all items, absolute values over some; micro-batches are cut out of batches of 32."""

    name = "text"
    saved = ("net",)
    weights: Mapping[str, float] = MappingProxyType({"square": 1.0, "absolute": 0.3})
    dtype = torch.float32
    cuts: tuple[int, ...] = (N_ITEMS,)
    """Items of each micro-batch of a step."""
    poisoned: Mapping[int, float] = MappingProxyType({})
    """Positions whose targets are multiplied."""
    moved: tuple[int, int] = (1 << 60, 0)
    """From this position on, that many positions later."""
    extra: tuple[str, ...] = ()
    """Loss terms without a count."""
    uncounted: tuple[str, ...] = ()

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        return Parts(net=Net().to(self.dtype))

    def batch(self, position: int, parts: int = 1) -> list[Batch]:
        source = position + (self.moved[1] if position >= self.moved[0] else 0)
        step, part = divmod(source, len(self.cuts))
        draw = generator(0, step)
        x = torch.randn(N_ITEMS, 4, generator=draw).to(self.dtype)
        y = torch.stack([x.sum(1), x.prod(1)], 1) * self.poisoned.get(source, 1.0)
        # Few items have the second loss, the first micro-batch none at all.
        some = (torch.rand(N_ITEMS, generator=draw) < 0.3) & (torch.arange(N_ITEMS) >= self.cuts[0] % N_ITEMS)
        start = sum(self.cuts[:part])
        x, y, some = (t[start : start + self.cuts[part]] for t in (x, y, some))
        return list(zip(x.chunk(parts), y.chunk(parts), some.chunk(parts), strict=True))

    def counts(self, batch: Batch) -> dict[str, torch.Tensor | int]:
        counts: dict[str, torch.Tensor | int] = {"square": batch[0].numel() // 2, "absolute": batch[2].sum()}
        return {k: v for k, v in counts.items() if k not in self.uncounted}

    def losses(self, model: nn.Module, batch: Batch, phase: str) -> dict[str, torch.Tensor]:
        x, y, some = batch
        out = model.get_submodule("net")(x)
        sums = {"square": F.mse_loss(out[:, 0], y[:, 0], reduction="sum")}
        sums["absolute"] = (F.l1_loss(out[:, 1], y[:, 1], reduction="none") * some).sum()
        return sums | {name: out.sum() for name in self.extra}

    def fill(self, batch: Batch) -> tuple[int, int]:
        return len(batch[0]), N_ITEMS

    def evaluate(self, model: nn.Module, split: str) -> list[Figure]:
        total = sum(float(p.double().sum()) for p in model.parameters())
        return [Figure(name="sum of weights", value=total, baseline=0.0, baseline_name="zero", n=1)]


EVERYTHING = {
    "name": "muon", "schedule": "wsd", "ema_decay": 0.9, "spike_sigma": 1e3, "spike_window": 3,
}  # fmt: skip


def _run(steps: int = 12, *, optim: Mapping[str, Any] = MappingProxyType({}), **changes: Any) -> RunConfig:
    return RunConfig(
        stage="text", model=model("nano"),
        train=TrainConfig(**{"steps": steps, "log_every": 1, **changes}),
        optim=OptimConfig(**{"lr": 0.02, "warmup_steps": 1, **optim}),
    )  # fmt: skip


def _stage(run: RunConfig, **changes: Any) -> TwoLosses:
    stage = TwoLosses(run)
    for name, value in changes.items():
        setattr(stage, name, value)
    return stage


def _state(directory: Path) -> dict[str, torch.Tensor]:
    path = newest_complete(directory)
    assert path is not None
    state = load_weights(path / "weights.safetensors")
    return state | {f"o/{k}": v.clone() for k, v in load_weights(path / "optimizer.safetensors").items()}


def _different(a: Result, b: Result) -> list[str]:
    one, other = _state(a.directory), _state(b.directory)
    assert one.keys() == other.keys()
    return [k for k, v in one.items() if not torch.equal(v, other[k])]


def _rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("cuts", [(1, 5, 9, 17), (31, 1), (8, 8, 8, 8)])
def test_one_batch_of_32_equals_uneven_micro_batches(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Five steps in float64, clipping and decay included; the first micro-batch has no target of one loss."""
    whole = _run(5)
    split = _run(5, micro_batches=len(cuts))
    some = _stage(whole, dtype=torch.float64, cuts=(N_ITEMS,))
    # The same targets of the second loss in both: those behind the first cut.
    source = _stage(split, dtype=torch.float64, cuts=cuts)
    some.batch = lambda position, parts=1: [  # type: ignore[method-assign]
        _joined([source.batch(position * len(cuts) + i)[0] for i in range(len(cuts))])
    ]
    a = train(some, whole, tmp_path / "a", device="cpu")
    b = train(_stage(split, dtype=torch.float64, cuts=cuts), split, tmp_path / "b", device="cpu")
    one, other = _state(a.directory), _state(b.directory)
    assert one["net.head.weight"].dtype == torch.float64 and one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-12, msg=name)
    for row, same in zip(_rows(a), _rows(b), strict=True):
        assert row["loss/absolute"] == pytest.approx(same["loss/absolute"], rel=1e-6)


def _joined(chosen: list[Batch]) -> Batch:
    return tuple(torch.cat(part) for part in zip(*chosen, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uncounted": ("absolute",)}, r"stage text: counts without \['absolute'\] of losses"),
        ({"extra": ("other",)}, r"counts without \['other'\]"),
        ({"weights": {"square": 1.0}}, r"weights without \['absolute'\] of losses"),
    ],
)
def test_a_loss_term_without_count_or_weight_raises(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(_stage(_run(), **changes), _run(), tmp_path, device="cpu")


def test_a_count_without_a_loss_term_raises(tmp_path: Path) -> None:
    stage = _stage(_run())
    plain = stage.counts
    stage.counts = lambda batch: {**plain(batch), "more": 1}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"losses without \['more'\] of counts"):
        train(stage, _run(), tmp_path, device="cpu")


BAD = dict.fromkeys(range(6, 11), math.nan)
"""Five positions, one more than five steps into the run."""


def test_five_bad_steps_in_a_row_go_back_and_on_with_other_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Oracle: from the checkpoint of step 6 on, an uninterrupted run whose data leave those positions out."""
    run = _run(12, save_every=6, keep=9)
    with caplog.at_level(logging.WARNING):
        result = train(_stage(run, poisoned=BAD), run, tmp_path / "a", device="cpu")
    clean = train(_stage(run, moved=(6, 5)), run, tmp_path / "b", device="cpu")
    assert _different(result, clean) == []
    assert result.skipped == 5 and result.spikes == 0 and result.step == 12
    assert [r.getMessage() for r in caplog.records] == [
        "stage text: 5 steps in a row were left out by step 11; on from step 6 with the data from position 11."
    ]
    rows = [row for row in _rows(result) if "lr" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert {"step": 6, "rolled_back_from": 11, "position": 11} in _rows(result)
    assert json.loads((result.directory / "run.json").read_text())["position"] == 17


def test_a_run_that_went_back_resumes_bit_for_bit(tmp_path: Path) -> None:
    run = _run(12, save_every=3, keep=9, optim=EVERYTHING)
    straight = train(_stage(run, poisoned=BAD), run, tmp_path / "a", device="cpu")
    done: list[int] = []

    def stop(step: int, steps: int, row: dict[str, float]) -> None:
        done.append(step)
        if row["skipped"] == 5 and step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(_stage(run, poisoned=BAD), run, tmp_path / "b", device="cpu", progress=stop)
    assert done[-1] == 10
    resumed = train(_stage(run, poisoned=BAD), run, tmp_path / "b", device="cpu")
    assert _different(straight, resumed) == [] and resumed.figures == straight.figures
    assert resumed.skipped == straight.skipped == 5


@pytest.mark.parametrize("n_bad", [1, 4])
def test_fewer_bad_steps_cost_themselves_alone(
    tmp_path: Path, n_bad: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice four with one good step between: not in a row."""
    poisoned = dict.fromkeys([*range(3, 3 + n_bad), *range(4 + n_bad, 4 + 2 * n_bad)], math.inf)
    run = _run(14, save_every=1, keep=20)
    with caplog.at_level(logging.WARNING):
        result = train(_stage(run, poisoned=poisoned), run, tmp_path, device="cpu")
    assert result.skipped == 2 * n_bad and not caplog.records
    assert json.loads((result.directory / "run.json").read_text())["position"] == 14


def test_bad_steps_are_found_between_rows_too(tmp_path: Path) -> None:
    run = _run(20, log_every=10, save_every=5)
    result = train(_stage(run, poisoned=dict.fromkeys(range(11, 16), math.nan)), run, tmp_path, device="cpu")
    position = json.loads((result.directory / "run.json").read_text())["position"]
    assert result.step == 20 and result.skipped == 5 and position == 25


@pytest.mark.parametrize(("save_every", "steps_before"), [(0, 0), (2, 4), (1, 4)])
def test_a_run_that_only_fails_stops_with_one_line(
    tmp_path: Path, save_every: int, steps_before: int
) -> None:
    run = _run(200, save_every=save_every)
    stage = _stage(run, poisoned=dict.fromkeys(range(steps_before, 999), math.nan))
    with pytest.raises(DivergedError, match=f"and {MAX_ROLLBACKS} returns to the last checkpoint") as error:
        train(stage, run, tmp_path, device="cpu")
    assert "\n" not in str(error.value) and "optim.lr" in str(error.value)


def test_bad_last_steps_without_a_checkpoint_still_end_in_one(tmp_path: Path) -> None:
    run = _run(12)
    result = train(_stage(run, poisoned=dict.fromkeys(range(7, 12), math.nan)), run, tmp_path, device="cpu")
    assert result.step == 12 and result.skipped == 5
    assert all(v.isfinite().all() for v in _state(result.directory).values())


def test_bad_steps_may_be_allowed(tmp_path: Path) -> None:
    run = _run(12, bad_steps=0)
    assert (
        train(_stage(run, poisoned=dict.fromkeys(range(12), math.nan)), run, tmp_path, device="cpu").skipped
        == 12
    )


def test_a_spike_is_skipped_counted_apart_and_nan_does_not_blind_the_judge(tmp_path: Path) -> None:
    """A NaN in a plain rolling window makes 129 later steps fail: anchors. Here it costs itself."""
    run = _run(60, save_every=1, keep=99, optim={"spike_sigma": 6.0, "spike_window": 10})
    result = train(_stage(run, poisoned={25: math.nan, 40: 1e4}), run, tmp_path, device="cpu")
    assert (result.skipped, result.spikes) == (1, 1)
    rows = _rows(result)
    assert [(row["skipped"], row["spikes"]) for row in rows] == [
        (int(i >= 25), int(i >= 40)) for i in range(60)
    ]
    folder = result.directory / "checkpoints"
    for name in ("weights", "optimizer"):
        a, b = (load_weights(folder / f"step-{s:08d}" / f"{name}.safetensors") for s in (40, 41))
        assert all(torch.equal(a[k], b[k]) for k in a)
    # The statistics are those of the norms in the rows: a mean over the last ones, the spike not among them.
    mean = float(_state(result.directory)["o/main/spikes/mean"])
    norms = [row["grad_norm"] for row in rows if row["grad_norm"] is not None]
    assert len(norms) == 58 and min(norms) < mean < max(norms) < 1e3


def test_saved_and_evaluated_weights_are_the_averages(tmp_path: Path) -> None:
    """Oracle: the same run without averages has the trained weights; the recurrence over its checkpoints."""
    plain = _run(8, save_every=1, keep=20)
    run = _run(8, save_every=1, keep=20, eval_every=2, optim={"ema_decay": 0.6})
    a = train(_stage(plain, poisoned={3: math.nan}), plain, tmp_path / "a", device="cpu")
    b = train(_stage(run, poisoned={3: math.nan}), run, tmp_path / "b", device="cpu")
    name = "net.head.weight"
    trained = [
        load_weights(a.directory / "checkpoints" / f"step-{s:08d}" / "weights.safetensors")[name]
        for s in range(1, 9)
    ]
    saved = _state(b.directory)
    assert torch.equal(saved[f"o/main/{name}/trained"], trained[-1])
    first = load_weights(b.directory / "checkpoints" / "step-00000001" / "weights.safetensors")[name]
    average, n = first.double(), 1
    for step in (2, 3, 5, 6, 7, 8):
        decay = min(0.6, (1 + n) / (10 + n))
        average, n = decay * average + (1 - decay) * trained[step - 1].double(), n + 1
    torch.testing.assert_close(saved[name].double(), average, rtol=1e-6, atol=1e-7)
    total = sum(float(v.double().sum()) for k, v in saved.items() if k.startswith("net."))
    assert b.figures["sum of weights"] == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("stop_at", [2, 7])
def test_every_option_at_once_resumes_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    run = _run(10, save_every=stop_at, keep=9, optim=EVERYTHING)
    straight = train(_stage(run), run, tmp_path / "a", device="cpu")

    def stop(step: int, steps: int, row: dict[str, float]) -> None:
        if step == stop_at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(_stage(run), run, tmp_path / "b", device="cpu", progress=stop)
    resumed = train(_stage(run), run, tmp_path / "b", device="cpu")
    assert _different(straight, resumed) == [] and resumed.figures == straight.figures
    assert any(k.endswith("momentum_buffer") for k in _state(resumed.directory))


@pytest.mark.parametrize("end", ["finished", "failed"])
def test_the_collector_rests_during_training_and_is_put_back(tmp_path: Path, end: str) -> None:
    seen: list[tuple[bool, bool]] = []

    def progress(step: int, steps: int, row: dict[str, float]) -> None:
        seen.append((gc.isenabled(), gc.get_freeze_count() > 0))
        if end == "failed" and step == 6:
            raise ZeroDivisionError

    assert gc.isenabled() and not gc.get_freeze_count()
    run = _run(8)
    try:
        train(_stage(run), run, tmp_path, device="cpu", progress=progress)
    except ZeroDivisionError:
        assert end == "failed"
    assert seen[:2] == [(True, False)] * 2 and set(seen[2:]) == {(False, True)}
    assert gc.isenabled() and not gc.get_freeze_count()


def test_a_caller_who_froze_or_disabled_the_collector_keeps_it_so(tmp_path: Path) -> None:
    gc.disable()
    try:
        train(_stage(_run(5)), _run(5), tmp_path / "a", device="cpu")
        assert not gc.isenabled() and not gc.get_freeze_count()
        gc.enable()
        gc.freeze()
        train(_stage(_run(5)), _run(5), tmp_path / "b", device="cpu")
        assert gc.isenabled() and gc.get_freeze_count()
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_save_collects_cycles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Node:
        alive = 0

        def __init__(self) -> None:
            self.me = self
            Node.alive += 1

        def __del__(self) -> None:
            Node.alive -= 1

    counts: list[int] = []
    plain = loop._Trainer.train_step

    def train_step(trainer: Any, batches: Iterator[Any]) -> None:
        counts.append(Node.alive)
        plain(trainer, batches)
        Node()

    monkeypatch.setattr(loop._Trainer, "train_step", train_step)
    run = _run(10, save_every=5)
    train(_stage(run), run, tmp_path, device="cpu")
    assert counts[5] == 0 and counts[9] == 4


def test_settings_out_of_range_are_one_line() -> None:
    run = _run()
    for group, name, value in (
        ("optim", "decay_share", 1.0), ("optim", "ema_decay", -0.1), ("optim", "spike_sigma", math.inf),
        ("optim", "spike_window", 1), ("train", "bad_steps", -1),
    ):  # fmt: skip
        changed = dataclasses.replace(getattr(run, group), **{name: value})
        with pytest.raises(ValueError, match=rf"{group}\.{name}: expected .*got {value}\.$"):
            dataclasses.replace(run, **{group: changed})
