"""Every stage trains from a prepared set as from the embedded one; a file that breaks later costs its item alone."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import made

from muomni.config import STAGES, RunConfig
from muomni.data.prepare import prepare
from muomni.data.prepared import Prepared, open_source
from muomni.train.loop import train
from muomni.train.stages import stage as make_stage

SmallRun = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    return prepare(made.adapter(n=300), root, cache=root)


def _run(small_run: SmallRun, name: str, folder: Path, **changes: object) -> RunConfig:
    run = small_run(name, steps=2, **changes)
    # Of so few words no larger vocabulary can be made.
    thinker = dataclasses.replace(run.model.thinker, vocab_size=300)
    return dataclasses.replace(run, data=str(folder), model=dataclasses.replace(run.model, thinker=thinker))


@pytest.fixture(scope="module")
def trained(folder: Path, small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("trained") / "run"
    for name in STAGES:
        run = _run(small_run, name, folder)
        result = train(make_stage(run), run, root)
        assert result.held_out and not result.skipped and result.quarantined == {}, name
    return root


def test_every_stage_trains_from_a_prepared_set(trained: Path) -> None:
    assert {path.name for path in trained.iterdir() if path.is_dir()} == set(STAGES)


@pytest.mark.parametrize("name", ["audio", "vision", "codec", "omni"])
def test_batches_are_the_same_read_before_training_or_when_used(
    name: str, trained: Path, folder: Path, small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(small_run, name, folder)
    later = make_stage(run)
    later.build(run, trained)
    monkeypatch.setattr(Prepared, "admitted", False)
    before = make_stage(run)
    before.build(run, trained)
    for position in (0, 3, 1):
        for one, other in zip(later.batch(position), before.batch(position), strict=True):
            for key, value in vars(one).items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value, getattr(other, key)), key


@pytest.mark.parametrize("name", ["audio", "vision", "codec", "omni", "talker"])
def test_a_file_that_breaks_after_preparing_is_left_out_and_listed(
    name: str,
    trained: Path,
    folder: Path,
    small_run: SmallRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Prepared.file
    source = Prepared([folder])
    broken = {item.id for item in (*source.speech("train")[::3], *source.pictures("train")[::3])}
    monkeypatch.setattr(
        Prepared, "file", lambda self, item: b"broken" if item.id in broken else real(self, item)
    )
    root = tmp_path / "run"
    shutil.copytree(trained, root)
    shutil.rmtree(root / name)
    run = _run(small_run, name, folder, bad_samples=0.9)
    open_source.cache_clear()
    result = train(make_stage(run), run, root)
    assert 0 < result.quarantined["train"] <= len(broken)
    assert "broken" not in (root / name / "quarantine.jsonl").read_text()
    assert all(line in broken for line in _ids(root / name / "quarantine.jsonl"))


def _ids(path: Path) -> set[str]:
    return {json.loads(line)["id"] for line in path.read_text().splitlines()}
