"""Packed documents do not see each other: another document A changes no output of B, in every stage that packs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni.config import RunConfig
from muomni.data.batch import pack
from muomni.models.thinker import Thinker
from muomni.tokens import IGNORE_INDEX
from muomni.train.stage import part
from muomni.train.stages import stage as make_stage
from muomni.train.stages import utterances, vision
from muomni.train.stages.audio import AudioStage
from muomni.train.stages.omni import OmniStage
from muomni.train.stages.talker import TalkerStage
from muomni.train.stages.text import TextStage
from muomni.train.stages.vision import VisionStage

pytestmark = pytest.mark.usefixtures("small_data")
SmallRun = Callable[..., RunConfig]
Outputs = Callable[[list[int]], list[torch.Tensor]]
"""Documents by number, in this order in one batch -> the outputs of each, (n, ...)."""


def _cut(values: torch.Tensor, cu_seqlens: torch.Tensor, n: int, times: int = 1) -> list[torch.Tensor]:
    ends = (cu_seqlens[: n + 1] * times).tolist()
    return [values[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def _text(stage: Any, model: torch.nn.Module) -> Outputs:
    assert isinstance(stage, TextStage)
    found, thinker = stage.documents("train"), part(model, "thinker", Thinker)

    def outputs(chosen: list[int]) -> list[torch.Tensor]:
        batch = pack([found[i] for i in chosen], n_tokens=2_560, n_docs=6, max_seq_len=512)
        hidden = thinker(thinker.embed(batch.input_ids), batch.positions, batch.cu_seqlens, batch.max_seqlen)
        return _cut(thinker.logits(hidden), batch.cu_seqlens, len(chosen))

    return outputs


def _omni(stage: Any, model: torch.nn.Module) -> Outputs:
    assert isinstance(stage, OmniStage)
    thinker = part(model, "thinker", Thinker)
    # With pictures and clips, in turns: the media of A must not reach B through the encoders either.
    by_task = {t: [e for e in stage.examples("train") if e.task == t] for t in ("name spoken", "transcribe")}
    chosen_from = [e for pair in zip(*by_task.values(), strict=False) for e in pair]

    def outputs(chosen: list[int]) -> list[torch.Tensor]:
        asked = [chosen_from[i] for i in chosen]
        batch = stage.collate("train", asked, stage.documents("train", asked))
        return _cut(thinker.logits(stage.hidden(model, batch)), batch.cu_seqlens, len(chosen))

    return outputs


def _audio(stage: Any, model: torch.nn.Module) -> Outputs:
    assert isinstance(stage, AudioStage)
    items = stage.items("train")

    def outputs(chosen: list[int]) -> list[torch.Tensor]:
        own = [items[i] for i in chosen]
        batch = stage.collate([stage.mel(i, 1) for i in own], [i.text for i in own], capacity=256)
        times = stage.config.audio.ctc_expand
        return _cut(stage.logits(model, batch), batch.cu_seqlens, len(chosen), times)

    return outputs


def _talker(stage: Any, model: torch.nn.Module) -> Outputs:
    assert isinstance(stage, TalkerStage)
    made = stage.utterances("train")

    def outputs(chosen: list[int]) -> list[torch.Tensor]:
        batch = utterances.collate([made[i] for i in chosen], delay=1, n_steps=256, n_items=6, longest=130)
        out = stage.forward(model, batch)
        depth = torch.zeros(len(batch.codes), out["depth"][0].numel())
        n_deep = int((batch.deep_labels[:, 0] != IGNORE_INDEX).sum())
        depth[batch.deep[:n_deep]] = out["depth"][:n_deep].flatten(1)
        values = torch.cat([out["first"][:, 0], depth, out["hidden"]], dim=1)
        # The step behind its last frame says nothing.
        return [own[:-1] for own in _cut(values, batch.cu_seqlens, len(chosen))]

    return outputs


def _vision(stage: Any, model: torch.nn.Module) -> Outputs:
    assert isinstance(stage, VisionStage)
    items, images = stage.read(stage.data.pictures("train"))
    pictures = vision.to_float(images)

    def outputs(chosen: list[int]) -> list[torch.Tensor]:
        captions = [stage.caption(items[i], stage.chosen(items[i], None)) for i in chosen]
        batch = vision.collate(pictures[chosen], captions, n_items=6)
        seen, said, _ = stage.embeddings(model, batch)
        return [torch.stack([seen[i], said[i]]) for i in range(len(chosen))]

    return outputs


STAGES = {"text": _text, "omni": _omni, "audio": _audio, "talker": _talker, "vision": _vision}


@pytest.mark.parametrize("name", STAGES)
@torch.no_grad()
def test_another_document_changes_no_output_of_this_one(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    """B before and after others, as many and other ones: each time what it gives alone."""
    shutil.copytree(trained, tmp_path / "root")
    run = small_run(name, augment=False)
    stage = make_stage(run)
    torch.manual_seed(0)
    model = stage.build(run, tmp_path / "root").eval()
    # Weights of two steps say little: larger ones make a leak larger.
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.requires_grad:
            parameter.mul_(2.0)
    outputs = STAGES[name](stage, model)
    for b, others in ((0, (1, 2, 3)), (3, (0, 1, 2))):
        (alone,) = outputs([b])
        assert alone.isfinite().all() and float(alone.abs().max()) > 0.01
        for a in others:
            after_a, after = outputs([a, b])
            before, before_a = outputs([b, a])
            for found in (after, before, outputs([*others, b])[-1]):
                torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
            assert after_a.shape != alone.shape or not torch.allclose(after_a, alone, rtol=1e-2, atol=1e-2)
            torch.testing.assert_close(before_a, after_a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["text", "omni", "audio", "talker"])
@torch.no_grad()
def test_the_test_sees_a_leak(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the boundaries between documents taken away the outputs of B do change."""
    shutil.copytree(trained, tmp_path / "root")
    run = small_run(name, augment=False)
    stage = make_stage(run)
    torch.manual_seed(0)
    model = stage.build(run, tmp_path / "root").eval()
    kind = {"text": "thinker", "omni": "thinker", "audio": "audio", "talker": "talker"}[name]
    inner = model.get_submodule(kind)
    target = inner if name != "talker" else inner.get_submodule("stack")
    plain = target.forward

    def leaky(*arguments: Any) -> Any:
        cu_seqlens = arguments[-2]
        joined = torch.where(torch.arange(len(cu_seqlens)) == 1, cu_seqlens[2], cu_seqlens)
        return plain(*arguments[:-2], joined, 4 * arguments[-1])

    outputs = STAGES[name](stage, model)
    sound = outputs([0, 1])[1]
    monkeypatch.setattr(target, "forward", leaky)
    assert not torch.allclose(outputs([0, 1])[1], sound, rtol=1e-3, atol=1e-4)
