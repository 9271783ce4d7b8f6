"""Out of memory halves the micro-batch and keeps the step; bfloat16 changes the arithmetic, not what is stored."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from muomni.config import STAGES, RunConfig
from muomni.models.weights import load_weights, newest_complete
from muomni.train.loop import Result, train
from muomni.train.stages import stage as make_stage
from muomni.train.step import MOST_PARTS, OutOfMemory, Step, in_half

SmallRun = Callable[..., RunConfig]
pytestmark = pytest.mark.usefixtures("small_data")


def _size(batch: Any) -> int:
    return sum(v.nbytes for v in vars(batch).values() if isinstance(v, torch.Tensor))


def _root(trained: Path, into: Path, run: RunConfig) -> Path:
    into.mkdir()
    shutil.copy(trained / "tokenizer.json", into)
    for parent in make_stage(run).parents:
        shutil.copytree(trained / parent, into / parent)
    return into


def _still(run: RunConfig) -> RunConfig:
    """Without dropout, whose masks depend on the pieces, and with plain steps: no moment to divide noise by."""
    if run.stage not in ("audio", "talker"):
        return run
    part = dataclasses.replace(getattr(run.model, run.stage), dropout=0.0)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **{run.stage: part}))


def _limit(stage: Any, limit: int, *, after: bool) -> list[int]:
    """Make a forward of more than `limit` bytes fail; after: when it has left its traces."""
    plain, sizes = stage.losses, []

    def losses(model: nn.Module, batch: Any, phase: str) -> dict[str, torch.Tensor]:
        if not torch.is_grad_enabled():
            return plain(model, batch, phase)
        sizes.append(_size(batch))
        sums = plain(model, batch, phase) if after else {}
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sums if after else plain(model, batch, phase)

    stage.losses = losses
    return sizes


def _gradients(name: str, trained: Path, root: Path, small_run: SmallRun, *, halved: bool) -> Any:
    """One step's gradients, as AdamW's first moment holds them, and the means of its losses."""
    run = _still(small_run(name, micro_batches=2))
    stage = make_stage(run)
    torch.manual_seed(0)
    model = stage.build(run, _root(trained, root, run))
    stage.set_mode(model)
    sizes: list[int] = []
    if halved:
        sizes = _limit(stage, _size(stage.batch(0)[0]) - 1, after=True)
    step = Step(stage, run, model)

    def fetch(parts: int) -> list[list[Any]]:
        return [stage.batch(position, parts) for position in (0, 1)]

    taken = step(fetch(1), fetch, step=5)
    assert step.parts == (2 if halved else 1)
    assert not halved or sizes[1] < sizes[0]
    moments = {k: v for o in step.optimizers.values() for k, v in o.state().items() if "exp_avg" in k}
    buffers = {k: v for k, v in model.named_buffers() if v.is_floating_point()}
    return moments | buffers, taken.seen


@pytest.mark.parametrize("name", ["text", "audio", "codec", "vocoder", "omni", "talker"])
def test_a_step_in_smaller_pieces_is_the_same_step(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    """Contrast is left out: it compares the pairs of a piece. Oracle: the step that fits."""
    whole, means = _gradients(name, trained, tmp_path / "whole", small_run, halved=False)
    pieces, same = _gradients(name, trained, tmp_path / "pieces", small_run, halved=True)
    assert whole.keys() == pieces.keys() and means.keys() == same.keys()
    for key, value in means.items():
        if key != "loss/balance":
            torch.testing.assert_close(same[key], value, rtol=1e-4, atol=1e-5, msg=key)
    for key, value in whole.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(pieces[key], value, rtol=1e-3, atol=1e-3 * scale + 1e-9, msg=key)


def test_a_run_that_meets_it_goes_on_in_pieces_and_says_so(
    trained: Path, tmp_path: Path, small_run: SmallRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = _still(small_run("text", steps=4, micro_batches=2))
    results: list[Result] = []
    for limited in (False, True):
        stage = make_stage(run)
        root = tmp_path / str(limited)
        root.mkdir()
        shutil.copy(trained / "tokenizer.json", root)
        if limited:
            stage.build(run, root)
            limit = _size(stage.batch(0)[0]) - 1
            sizes = _limit(stage, limit, after=False)
        with caplog.at_level(logging.WARNING):
            results.append(train(stage, run, root, device="cpu"))
    assert caplog.text.count("out of memory; micro-batches go on in 2 pieces, a step stays the same.") == 1
    # The first failure, then pieces only: the whole batch is not tried again.
    assert sum(size > limit for size in sizes) == 1 and len(sizes) > 8
    one, other = (_weights(result) for result in results)
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4, msg=key)


def _weights(result: Result) -> dict[str, torch.Tensor]:
    path = newest_complete(result.directory)
    assert path is not None
    return load_weights(path / "weights.safetensors")


def test_what_fits_in_no_piece_is_one_line(trained: Path, tmp_path: Path, small_run: SmallRun) -> None:
    run = small_run("text")
    stage = make_stage(run)
    _limit(stage, 0, after=False)
    with pytest.raises(
        OutOfMemory,
        match=f"stage text: out of memory with a micro-batch in {MOST_PARTS} pieces; .*`muomni plan`",
    ) as e:
        train(stage, run, _root(trained, tmp_path / "root", run), device="cpu")
    assert "\n" not in str(e.value)


def _never(parts: int) -> list[list[Any]]:
    raise AssertionError(f"asked for {parts} parts")


@pytest.mark.parametrize("name", STAGES)
def test_bfloat16_gives_the_losses_of_float32_nearly_and_keeps_float32_weights(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        run = _still(small_run(name, precision=precision))
        stage = make_stage(run)
        torch.manual_seed(0)
        model = stage.build(run, _root(trained, tmp_path / precision, run))
        stage.set_mode(model)
        step = Step(stage, run, model)
        found[precision] = step([stage.batch(0)], _never, step=5).seen
        for parameter in model.parameters():
            assert parameter.dtype == torch.float32
            assert parameter.grad is None or parameter.grad.dtype == torch.float32
        assert all(v.dtype == torch.float32 for o in step.optimizers.values() for v in o.state().values())
    for key, value in found["fp32"].items():
        half = found["bf16"][key]
        # Eight bits of mantissa, through few layers.
        torch.testing.assert_close(half, value, rtol=0.03, atol=1e-3, msg=key)
    assert any(not torch.equal(found["bf16"][k], v) for k, v in found["fp32"].items())


def test_automatic_precision_is_float32_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert [in_half(p, cpu) for p in ("auto", "fp32", "bf16")] == [False, False, True]
