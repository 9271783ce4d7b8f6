"""Every stage of size base takes a step of 16,384 positions on a card of 12 GB: a larger one is limited to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from muomni.config import STAGES
from muomni.recipes import recipe
from muomni.train.plan import ENOUGH, full_batch, parse_memory, scaled, stage_model
from muomni.train.stages import stage as make_stage
from muomni.train.step import Step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def _twelve_gigabytes() -> Iterator[None]:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, parse_memory("12GB") / total))
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("_twelve_gigabytes")
@pytest.mark.parametrize("name", STAGES)
def test_a_step_of_base_fits(name: str) -> None:
    """Steps as they are by default on a GPU; 128 pictures of 197 patches are more positions."""
    run = recipe("base", name)
    run = scaled(run, 128 if name == "vision" else ENOUGH)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, recompute=True))
    stage, model = make_stage(run), stage_model(run).to("cuda")
    stage.set_mode(model)
    step = Step(stage, run, model)
    batch = full_batch(stage, run)
    for number in range(3):
        taken = step([[batch]], lambda parts: [[batch]], step=number)
    assert step.parts == 1 and not taken.bad
    print(f"{name}: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
