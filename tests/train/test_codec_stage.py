"""Stage codec: discriminators wait, each phase changes its own alone, and codebooks learn from one phase."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muomni.config import RunConfig
from muomni.models.codec import Codec
from muomni.models.discriminators import LogMelDiscriminators
from muomni.train.stage import part
from muomni.train.stages import stage as make_stage
from muomni.train.stages.codec import CodecStage
from muomni.train.step import Step

pytestmark = pytest.mark.usefixtures("small_data")
SmallRun = Callable[..., RunConfig]


def _built(small_run: SmallRun, root: Path, *, adversarial_from: float) -> tuple[CodecStage, torch.nn.Module]:
    torch.manual_seed(0)
    run = small_run("codec", steps=4)
    codec = dataclasses.replace(run.model.codec, adversarial_from=adversarial_from, d_discriminator=2)
    stage = make_stage(dataclasses.replace(run, model=dataclasses.replace(run.model, codec=codec)))
    assert isinstance(stage, CodecStage)
    model = stage.build(stage.run, root)
    stage.set_mode(model)
    return stage, model


def test_discriminators_wait_and_each_phase_changes_its_own(trained: Path, small_run: SmallRun) -> None:
    stage, model = _built(small_run, trained, adversarial_from=0.5)
    step, quantizer = Step(stage, stage.run, model), part(model, "codec", Codec).quantizer
    for i in range(4):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        taken = step([stage.batch(i)], lambda parts: [], step=i)
        moved = {n.split(".")[0] for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
        assert moved == ({"codec"} if i < 2 else {"codec", "discriminators"})
        assert ("loss/judged" in taken.seen) == ("loss/fooled" in taken.seen) == (i >= 2)
        # The judges' phase looks at the same copies once more; the codebooks move once.
        assert int(quantizer.n_commits) == i + 1 and not quantizer._pending


def test_without_discriminators_there_are_none(trained: Path, small_run: SmallRun) -> None:
    stage, model = _built(small_run, trained, adversarial_from=1.0)
    assert stage.phases == ("main",) and not hasattr(model, "discriminators")
    assert (
        stage.counts(stage.batch(5)[0]).keys() == {"l1", "l2", "scales", "commitment"} == stage.weights.keys()
    )


def test_judges_of_log_mel_see_it_fine_and_coarse() -> None:
    torch.manual_seed(0)
    judges, rows = LogMelDiscriminators(3), torch.randn(2, 64, 128)
    (fine, features), (coarse, _) = judges(rows)
    assert len(features) == 4 and fine.shape[1] > 2 * coarse.shape[1]
    # A checkerboard is gone where two by two are averaged.
    board = (torch.arange(64)[:, None] + torch.arange(128)) % 2 * 2.0 - 1.0
    (other, _), (same, _) = judges(rows + board)
    assert torch.allclose(same, coarse, atol=1e-4) and not torch.allclose(other, fine, atol=1e-2)
