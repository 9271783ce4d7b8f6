"""FLOPs of a step: against the closed form, against torch's own counter of a real step, and without a trace."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from muomni.config import STAGES, RunConfig
from muomni.data.batch import pack
from muomni.data.template import render_text
from muomni.models.thinker import Thinker
from muomni.recipes import debug
from muomni.train import flops
from muomni.train.meter import Meter, peak_memory
from muomni.train.stage import Parts
from muomni.train.stages import stage as make_stage
from muomni.train.stages.text import TextStage

SmallRun = Callable[..., RunConfig]


def _row(lengths: list[int]) -> Any:
    """One full row of documents; every position but the last of each has a target."""
    found = [render_text(list(range(20, 20 + n - 2)), max_seq_len=512)[0] for n in lengths]
    return pack(found, n_tokens=sum(lengths), n_docs=len(lengths), max_seq_len=512)


@pytest.mark.parametrize("lengths", [[512], [128] * 4, [7, 300, 205]], ids=str)
def test_a_plain_thinker_step_agrees_with_the_closed_form(lengths: list[int]) -> None:
    run = debug("nano", "text")
    stage, thinker = TextStage(run), Thinker(run.model.thinker)
    found = flops.count(stage, Parts(thinker=thinker), _row(lengths))
    cfg, n_positions = run.model.thinker, sum(lengths)
    parameters = sum(p.numel() for p in thinker.parameters() if p.ndim == 2)
    products = 6 * parameters * n_positions
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    attention = 12 * cfg.n_layers * cfg.n_heads * cfg.head_dim * pairs
    assert found.products == pytest.approx(products, rel=0.05)
    assert found.attention == attention
    assert found.total == pytest.approx(products + attention, rel=0.05)


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("name", STAGES)
def test_products_are_those_torch_counts_in_a_real_step(
    name: str, trained: Path, small_run: SmallRun
) -> None:
    """Oracle: FlopCounterMode over forward and backward, less the batched products inside attention modules."""
    stage = make_stage(small_run(name))
    model = stage.build(stage.run, trained)
    batch = _first(stage)
    stage.set_mode(model)
    found = flops.count(stage, model, batch)
    counter = FlopCounterMode(display=False)
    with counter:
        for phase in stage.phases:
            torch.stack(list(stage.losses(model, batch, phase).values())).sum().backward()
    counts = counter.get_flop_counts()
    expected = sum(counts["Global"].values())
    for module, by_operation in counts.items():
        if module.endswith(".attention"):
            expected -= sum(n for op, n in by_operation.items() if "bmm" in str(op))
    assert found.products == expected
    assert found.attention > 0 or name in ("codec", "vocoder")


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("name", ["codec", "audio"])
def test_counting_leaves_no_trace(name: str, trained: Path, small_run: SmallRun) -> None:
    stage = make_stage(small_run(name))
    model = stage.build(stage.run, trained)
    batch = _first(stage)
    stage.set_mode(model)
    modes = {n: m.training for n, m in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    drawn = torch.get_rng_state()
    flops.count(stage, model, batch)
    assert all(p.grad is None for p in model.parameters())
    assert modes == {n: m.training for n, m in model.named_modules()}
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if name == "codec":
        assert model.get_submodule("codec.quantizer")._pending == []


def test_frozen_parts_cost_their_forward_alone() -> None:
    run = debug("nano", "text")
    stage, thinker = TextStage(run), Thinker(run.model.thinker)
    whole = flops.count(stage, Parts(thinker=thinker), _row([512]))
    thinker.requires_grad_(False)
    frozen = flops.count(stage, Parts(thinker=thinker), _row([512]))
    assert (frozen.products * 3, frozen.attention * 3) == (whole.products, whole.attention)


def test_the_measured_rate_is_one_a_process_and_of_the_order_of_a_product_timed_here() -> None:
    device = torch.device("cpu")
    rate = flops.gemm_rate(device, torch.float32)
    assert rate == flops.gemm_rate(device, torch.float32)
    assert 1e8 < rate < 1e14


def test_a_row_is_flops_over_seconds_times_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a clock and a rate that are given."""
    run = debug("nano", "text")
    stage, model = TextStage(run), Parts(thinker=Thinker(run.model.thinker))
    batch = dataclasses.replace(_row([300, 212]), n_tokens=256)
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr("muomni.train.meter.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(flops, "gemm_rate", lambda device, dtype: 1e12)
    meter = Meter(stage, model)  # 0
    meter.add([batch, batch])  # 1 to 2: the count, left out
    meter.add([batch, batch])
    row = meter.values()  # 3
    expected = 4 * flops.count(stage, model, batch).total / 2.0 / 1e12
    assert row["mfu"] == pytest.approx(expected, abs=1e-4)
    assert row["tokens_per_second"] == 4 * 256 / 2.0
    assert row["fill_rate"] == 0.5
    assert row["memory_mib"] == pytest.approx(peak_memory(torch.device("cpu")) / 2**20, rel=0.2)


def test_without_memory_for_the_count_there_is_no_mfu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(flops, "count", full)
    run = debug("nano", "text")
    meter = Meter(TextStage(run), Parts(thinker=Thinker(run.model.thinker)))
    meter.add([_row([512])])
    assert meter.values()["mfu"] is None
    assert "rows have no MFU" in caplog.text


def _first(stage: Any) -> Any:
    return stage.batch(0)[0]


def test_memory_of_a_cpu_process_is_its_resident_set() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(1 << 26)
    assert peak_memory(torch.device("cpu")) >= before
    assert peak_memory(torch.device("cpu")) > held.nbytes
    assert isinstance(held, torch.Tensor) and not isinstance(held, nn.Parameter)
