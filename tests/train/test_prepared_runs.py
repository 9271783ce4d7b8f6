"""Every stage trains from a prepared set as from the embedded one; a file that breaks later costs its item alone."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import made

from muomni.config import STAGES, RunConfig
from muomni.data.audio import audio_frames
from muomni.data.image import to_array, to_float
from muomni.data.items import SPLITS, DialogueClip
from muomni.data.media import read_audio, read_image
from muomni.data.prepare import prepare
from muomni.data.prepared import Prepared, open_source
from muomni.data.sources.adapter import Found
from muomni.data.splits import split_of
from muomni.errors import UserError
from muomni.train.loop import train
from muomni.train.stages import stage as make_stage
from muomni.train.stages.omni import OmniStage

SmallRun = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    return prepare(made.adapter(n=300), root, cache=root)


def _run(small_run: SmallRun, name: str, folder: Path, *, steps: int = 2, **changes: object) -> RunConfig:
    run = small_run(name, steps=steps, **changes)
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


@pytest.mark.parametrize("name", ["audio", "vision", "codec", "vocoder", "omni"])
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


@pytest.mark.parametrize("name", ["audio", "vision", "codec", "vocoder", "omni", "talker"])
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
    run = _run(small_run, name, folder, steps=12, bad_samples=0.9)
    open_source.cache_clear()
    result = train(make_stage(run), run, root)
    assert 0 < result.quarantined["train"] <= len(broken)
    assert "broken" not in (root / name / "quarantine.jsonl").read_text()
    assert all(line in broken for line in _ids(root / name / "quarantine.jsonl"))


def _ids(path: Path) -> set[str]:
    return {json.loads(line)["id"] for line in path.read_text().splitlines()}


def test_dialogues_are_learned_with_their_pictures_and_recordings(
    trained: Path, folder: Path, small_run: SmallRun
) -> None:
    run = _run(small_run, "omni", folder)
    stage = make_stage(run)
    assert isinstance(stage, OmniStage)
    stage.build(run, trained)
    (example, *_) = [e for e in stage.examples("train") if e.task == "dialogue"]
    (media,) = stage.media("train", [example], stage.documents("train", [example]))
    item = stage.clips("train")[example.clips[0]]
    assert isinstance(item, DialogueClip)
    source = Prepared([folder])
    (dialogue, *_) = source.dialogues("train")
    stored = source.file(dialogue)
    assert dialogue == item.dialogue
    picture, recording = stored[: item.dialogue.sizes[0]], stored[item.dialogue.sizes[0] :]
    mel = run.model.mel
    heard = audio_frames(read_audio(recording), mel, factor=run.model.audio.factor)
    assert torch.equal(media.clips[0], heard)
    seen = torch.from_numpy(to_array(read_image(picture), stage.side))
    assert torch.equal(media.images[0], to_float(seen))


def _only(tmp_path: Path, *kinds: str, splits: tuple[str, ...] = SPLITS) -> str:
    """A set of some of the items."""

    def find(cache: Path) -> Iterator[Found]:
        for one in made.find(cache, n=300):
            split = split_of(one.kind, one.group)
            if one.kind in kinds and split in splits:
                yield one

    source = dataclasses.replace(made.adapter(name="only"), find=find)
    return str(prepare(source, tmp_path, cache=tmp_path))


@pytest.mark.parametrize("kind", ["texts", "lines", "speech"])
def test_text_is_measured_on_whatever_a_set_has(kind: str, small_run: SmallRun, tmp_path: Path) -> None:
    run = _run(small_run, "text", Path(_only(tmp_path, kind)), batch_tokens=1_024)
    result = train(make_stage(run), run, tmp_path / "run")
    (bits, *_) = result.held_out
    assert bits.n > 0 and 0 < bits.value < 16
    (sample,) = (tmp_path / "run" / "text" / "samples").rglob("continuations.txt")
    assert "recorded" in sample.read_text()


@pytest.mark.parametrize(
    ("name", "what"), [("text", "text"), ("vision", "pictures"), ("codec", "recordings"), ("vocoder", "recordings"),
                       ("talker", "recordings"),
                       ("omni", "questions with answers")],
)  # fmt: skip
def test_a_set_without_what_a_stage_needs_is_refused_before_training(
    name: str, what: str, trained: Path, small_run: SmallRun, tmp_path: Path
) -> None:
    data = _only(tmp_path, "speech", "pictures", "texts", splits=("train",))
    run = _run(small_run, name, Path(data))
    with pytest.raises(
        UserError, match=f"stage {name}: data .* has no usable {what} in split validation; add"
    ):
        make_stage(run).build(run, trained)
