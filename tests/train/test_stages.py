"""What every stage owes the loop: gradients, modes, exact resume, learning, order, baselines."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from muomni.config import STAGES, RunConfig
from muomni.models.weights import load_weights, newest_complete
from muomni.recipes import debug
from muomni.train.loop import train
from muomni.train.stage import Stage, StageOrderError
from muomni.train.stages import stage as make_stage

pytestmark = pytest.mark.usefixtures("small_data")
SmallRun = Callable[..., RunConfig]
PARENTS = {name: make_stage(debug("nano", name)).parents for name in STAGES}


def _with_parents(trained: Path, root: Path, name: str) -> Path:
    """A fresh run directory that holds the prerequisites of a stage alone."""
    root.mkdir(parents=True)
    if name != "text":
        shutil.copy(trained / "tokenizer.json", root)
    for parent in PARENTS[name]:
        shutil.copytree(trained / parent, root / parent)
    return root


def _built(run: RunConfig, trained: Path, tmp_path: Path) -> tuple[Stage, nn.Module]:
    torch.manual_seed(0)
    stage = make_stage(run)
    model = stage.build(run, _with_parents(trained, tmp_path / "root", stage.name))
    stage.set_mode(model)
    return stage, model


def _loss(stage: Stage, model: nn.Module, batch: Any, phase: str = "") -> torch.Tensor:
    counts = stage.counts(batch)
    sums = stage.losses(model, batch, phase or stage.phases[0])
    assert sums.keys() <= counts.keys() <= stage.weights.keys()
    return torch.stack([stage.weights[k] * sums[k] / counts[k] for k in sums]).sum()


@pytest.mark.parametrize("name", STAGES)
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    stage, model = _built(small_run(name), trained, tmp_path)
    owned = {n for n, _ in model.named_parameters() if n.split(".")[0] in stage.saved}
    assert sorted(n for phase in stage.phases for n in stage.parameters(model, phase)) == sorted(owned)
    for phase in stage.phases:
        model.zero_grad(set_to_none=True)
        for batch in (stage.batch(position)[0] for position in range(12 if name == "omni" else 4)):
            if stage.takes(phase, batch):
                _loss(stage, model, batch, phase).backward()
        updated = set(stage.parameters(model, phase))
        for parameter_name, parameter in model.named_parameters():
            assert parameter.requires_grad == (parameter_name in owned), parameter_name
            if parameter_name in updated:
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name
            else:
                assert parameter.grad is None, parameter_name


@pytest.mark.parametrize("name", STAGES)
def test_trained_parts_are_in_train_mode_and_frozen_ones_in_eval_mode(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    stage, model = _built(small_run(name), trained, tmp_path)
    for module_name, module in model.named_modules():
        if module_name:
            assert module.training == (module_name.split(".")[0] in stage.saved), module_name
    frozen = {n.split(".")[0] for n, _ in model.named_parameters()} - set(stage.saved)
    assert frozen == {
        "vocoder": {"codec"},
        "omni": {"vision", "audio", "ctc_head"},
        "talker": {"thinker", "codec", "audio", "ctc_head"},
    }.get(name, set())


@pytest.mark.parametrize("name", STAGES)
def test_three_steps_and_a_resume_equal_six_steps_bit_for_bit(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    run = small_run(name, steps=6, save_every=3, keep=3)
    ends = []
    for label in ("straight", "resumed"):
        root = _with_parents(trained, tmp_path / label, name)
        if label == "resumed":
            with pytest.raises(KeyboardInterrupt):
                train(make_stage(run), run, root, progress=_stop_after(3))
            assert newest_complete(root / name) == root / name / "checkpoints" / "step-00000003"
        result = train(make_stage(run), run, root)
        path = newest_complete(result.directory)
        assert path is not None and path.name == "step-00000006"
        weights = load_weights(path / "weights.safetensors")
        ends.append((weights | load_weights(path / "optimizer.safetensors"), result.figures))
    (a, figures_a), (b, figures_b) = ends
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert figures_a == figures_b


def _stop_after(steps: int) -> Any:
    def progress(step: int, total: int, row: dict[str, float]) -> None:
        # Called before the save of its own step: the one after finds the checkpoint.
        if step == steps + 1:
            raise KeyboardInterrupt

    return progress


NEAR_ZERO = {
    "text": 0.15,
    "audio": 0.1,
    "vision": 0.1,
    "codec": 0.12,
    "vocoder": 0.2,
    "omni": 0.1,
    "talker": 0.3,
}
"""Loss a stage reaches on one batch; it starts at 2 to 30."""


@pytest.mark.parametrize("name", STAGES)
def test_one_batch_is_learnt_by_heart(name: str, trained: Path, tmp_path: Path, small_run: SmallRun) -> None:
    run = small_run(
        name, augment=False, **{"codec": {"batch_tokens": 64}, "vocoder": {"batch_tokens": 16}}.get(name, {})
    )
    parts = {
        part: dataclasses.replace(getattr(run.model, part), dropout=0.0)
        for part in ("thinker", "audio", "talker")
    }
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, **parts))
    stage, model = _unchecked(run, trained, tmp_path)
    batch = stage.batch(0)[0]
    parameters = list(stage.parameters(model, stage.phases[0]).values())
    optimizer = torch.optim.Adam(parameters, lr=1e-2, betas=(0.9, 0.98))
    first = float(_loss(stage, model, batch).detach())
    loss = math.inf
    for step in range(400):
        loss_now = _loss(stage, model, batch)
        optimizer.zero_grad()
        loss_now.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 10) * (1 - step / 400)
        optimizer.step()
        stage.after_step(model)
        loss = float(loss_now.detach())
        if loss < NEAR_ZERO[name]:
            break
    assert loss < NEAR_ZERO[name] < first / 5


def _unchecked(run: RunConfig, trained: Path, tmp_path: Path) -> tuple[Stage, nn.Module]:
    """Built from parents whose saved configuration says nothing about dropout."""
    import json

    stage = make_stage(run)
    root = _with_parents(trained, tmp_path / "root", stage.name)
    from muomni.models.weights import write_manifest
    from muomni.settings import to_dict

    for parent in stage.parents:
        path = newest_complete(root / parent)
        assert path is not None
        record = json.loads((path / "run.json").read_text())
        record["config"]["model"] = to_dict(run.model)
        (path / "run.json").write_text(json.dumps(record))
        write_manifest(path)
    torch.manual_seed(0)
    model = stage.build(run, root)
    stage.set_mode(model)
    return stage, model


@pytest.mark.parametrize(
    ("name", "missing"),
    [(name, parent) for name in STAGES for parent in PARENTS[name]],
)
def test_wrong_stage_order_is_one_line_with_the_remedy(
    name: str, missing: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    root = _with_parents(trained, tmp_path / "root", name)
    shutil.rmtree(root / missing)
    run = small_run(name)
    with pytest.raises(
        StageOrderError, match=f"stage {name} needs stage {missing}: run `muomni train --stage {missing}"
    ) as e:
        train(make_stage(run), run, root)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["text", "audio", "codec", "vocoder", "omni", "talker"])
def test_batch_split_in_two_gives_the_same_sums(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    """Contrast is left out: its loss compares the items of a batch. Oracle: the two halves' sums, added."""
    stage, model = _built(small_run(name), trained, tmp_path)
    model.eval()
    whole, halves = _halves(stage)
    with torch.no_grad():
        expected = stage.losses(model, whole, stage.phases[0])
        parts = [stage.losses(model, half, stage.phases[0]) for half in halves]
    for key, value in expected.items():
        if key != "balance":
            torch.testing.assert_close(sum(p[key] for p in parts), value, rtol=2e-4, atol=1e-3)
            assert sum(int(stage.counts(h)[key]) for h in halves) == int(stage.counts(whole)[key])


def _halves(stage: Any) -> tuple[Any, list[Any]]:
    """One batch of four items, and the same items as two batches of two."""
    if stage.name in ("text", "omni"):
        from muomni.data.batch import pack

        if stage.name == "text":
            items = stage.documents("train")[:4]
            sizes = {"n_tokens": 2_048, "n_docs": 8, "max_seq_len": stage.config.max_seq_len}
            return pack(items, **sizes), [pack(items[:2], **sizes), pack(items[2:], **sizes)]
        first = {e.task: e for e in reversed(stage.examples("train"))}
        chosen = [first[task] for task in ("name", "transcribe", "count", "name spoken")]
        found = stage.documents("train", chosen)
        made = [stage.collate("train", chosen[a:b], found[a:b]) for a, b in ((0, 4), (0, 2), (2, 4))]
    elif stage.name == "audio":
        items = stage.items("train")[:4]
        mels, texts = [stage.mel(i, 1) for i in items], [i.text for i in items]
        made = [stage.collate(mels[a:b], texts[a:b], capacity=256) for a, b in ((0, 4), (0, 2), (2, 4))]
    elif stage.name == "vocoder":
        batch = stage.batch(0)[0]
        fields = ("frames", "wave", "coded")
        made = [
            dataclasses.replace(batch, **{f: getattr(batch, f)[a:b] for f in fields})
            for a, b in ((0, 4), (0, 2), (2, 4))
        ]
    elif stage.name == "codec":
        batch = stage.batch(0)[0]
        made = [dataclasses.replace(batch, frames=batch.frames[a:b]) for a, b in ((0, 4), (0, 2), (2, 4))]
    else:
        from muomni.train.stages.utterances import collate

        made = [collate(stage.utterances("train")[a:b], delay=1) for a, b in ((0, 4), (0, 2), (2, 4))]
    return made[0], made[1:]


@pytest.mark.parametrize("name", STAGES)
def test_batches_from_a_position_are_those_of_the_straight_run(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    stage, _ = _built(small_run(name), trained, tmp_path)
    straight = [stage.batch(position)[0] for position in range(5)]
    later = _built(small_run(name), trained, tmp_path / "other")[0].batch(4)[0]
    for key, value in vars(straight[4]).items():
        other = getattr(later, key)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


@pytest.mark.parametrize("name", STAGES)
def test_figures_are_finite_and_have_their_baselines(name: str, trained: Path) -> None:
    from muomni.train.checkpoint import read_record

    record = read_record(trained / name)
    assert record is not None and record["complete"] and record["figures"]
    for figure in record["figures"]:
        assert math.isfinite(figure["value"]) and math.isfinite(figure["baseline"]), figure
        assert figure["n"] > 0 and figure["better"] in ("lower", "higher") and figure["baseline_name"]
