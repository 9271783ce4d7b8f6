"""The memory plan: its prediction against a measured step, and what it says when nothing fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from muomni.config import STAGES, RunConfig
from muomni.errors import UserError
from muomni.recipes import recipe
from muomni.settings import override
from muomni.train import plan as planner
from muomni.train.plan import ENOUGH, Plan, choose, measured_peak, parse_memory, plan, scaled, table

SmallRun = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in STAGES), ("text", {"precision": "fp32"}), ("omni", {"recompute": True})],
)
def test_prediction_is_within_ten_percent_of_a_small_step(
    name: str, changes: dict[str, Any], small_run: SmallRun
) -> None:
    torch.set_num_threads(1)
    run = small_run(name, **changes)
    if name == "vocoder":
        # A unit of 16 crops instead of 64: bfloat16 convolutions are slow on a CPU, and crops take the same each.
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, max_seq_len=128))
    assert plan(run).peak(12) == pytest.approx(measured_peak(run, 12), rel=0.1)


@pytest.mark.parametrize("name", ["text", "omni"])
def test_prediction_is_within_ten_percent_at_nano(name: str) -> None:
    torch.set_num_threads(1)
    run = recipe("nano", name)
    assert plan(run).peak(10) == pytest.approx(measured_peak(run, 10), rel=0.1)


def test_largest_micro_batch_fits_and_the_next_does_not() -> None:
    found = Plan(
        stage="text", unit=512, weights=100, gradients=80, moments=200, per_unit=7.0, base=20.0, least=40
    )
    assert found.peak(1) == 100 + 80 + 200 + 40
    assert found.peak(50) == 100 + 80 + 200 + 20 + 350
    units = found.fitting(1_000)
    assert found.peak(units) <= 1_000 < found.peak(units + 1)
    with pytest.raises(UserError, match="memory: one micro-batch of 512 needs"):
        found.fitting(419)


def test_table_adds_up_and_names_settings_that_fit(small_run: SmallRun) -> None:
    memory = 200 * 2**20
    run, found = choose(small_run("text"), memory)
    *rows, _, settings = table(found, run, memory)
    sizes = [float(row.split()[-2].replace(",", "")) for row in rows]
    *parts, peak, usable = sizes
    assert sum(parts) == pytest.approx(peak, abs=0.3) and peak <= usable == 200.0
    chosen = override(run, settings.removeprefix("--set ").split())
    assert chosen == run == scaled(run, chosen.train.batch_tokens)
    assert measured_peak(run, chosen.train.batch_tokens // found.unit) <= 200 * 2**20 * 1.02


def test_blocks_are_computed_again_only_where_keeping_them_leaves_too_little_room(
    small_run: SmallRun,
) -> None:
    """Oracle: the plans of both ways, compared by hand."""
    kept, again = plan(small_run("text")), plan(small_run("text", recompute=True))
    assert again.per_unit < kept.per_unit
    wide = kept.peak(ENOUGH // kept.unit)
    # The bytes of two plans of one step differ a little: so does what autograd frees when.
    assert not choose(small_run("text"), round(wide * 1.01))[0].train.recompute
    run, found = choose(small_run("text"), round(wide * 0.98))
    assert (
        run.train.recompute
        and run.train.batch_tokens >= ENOUGH
        and found.per_unit == pytest.approx(again.per_unit, rel=0.02)
    )
    with pytest.raises(UserError, match="memory: one micro-batch of 512 needs"):
        choose(small_run("text"), 2**20)


def test_memory_is_a_cards_size_less_its_drivers_share() -> None:
    assert parse_memory("12GB") == parse_memory("12 gib") == 12 * 2**30 - int(0.8 * 2**30)
    assert parse_memory("900MB") == 900 * 2**20 - int(0.8 * 2**30)
    for wrong in ("12", "lots", "-3GB", "500MB"):
        with pytest.raises(UserError, match="memory: expected"):
            parse_memory(wrong)


def test_moments_are_half_as_large(small_run: SmallRun) -> None:
    run = small_run("text")
    half = dataclasses.replace(run, optim=dataclasses.replace(run.optim, moments="bf16"))
    assert plan(half).moments == pytest.approx(plan(run).moments / 2, rel=0.01)


@pytest.mark.parametrize(
    ("memory", "asked", "expected"),
    [
        # 300 are fixed, 200 with moments of bf16; a unit takes 20, or 10 computed again.
        (1_000, {}, (False, "fp32", 35)), (700, {}, (True, "fp32", 40)), (520, {}, (True, "bf16", 32)),
        (400, {}, (True, "bf16", 20)), (1_000, {"recompute": True}, (True, "fp32", 70)),
        (1_000, {"moments": "bf16"}, (False, "bf16", 40)),
    ],
)  # fmt: skip
def test_what_costs_time_is_taken_last_and_what_was_asked_for_is_kept(
    memory: int, asked: dict[str, Any], expected: tuple[bool, str, int], small_run: SmallRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Oracle: plans made up so that the arithmetic is done by hand; 32 units are ENOUGH."""

    def made_up(run: RunConfig) -> Plan:
        return Plan(
            stage="text", unit=ENOUGH // 32, weights=50, gradients=50, base=0.0, least=0,
            moments=100 if run.optim.moments == "bf16" else 200, per_unit=10.0 if run.train.recompute else 20.0,
        )  # fmt: skip

    monkeypatch.setattr(planner, "plan", made_up)
    train = {k: v for k, v in asked.items() if k == "recompute"}
    run = small_run("text", **train)
    if "moments" in asked:
        run = dataclasses.replace(run, optim=dataclasses.replace(run.optim, moments="bf16"))
    chosen, found = choose(run, memory)
    units = chosen.train.batch_tokens // found.unit
    assert (chosen.train.recompute, chosen.optim.moments, units) == expected
