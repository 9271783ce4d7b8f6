"""Samples: what a plain forward says, the same bytes each time, held-out items, few files, every stage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import nn

from muomni.config import STAGES, RunConfig
from muomni.data import embedded
from muomni.models.thinker import Thinker
from muomni.recipes import debug
from muomni.tokens import EOS
from muomni.train.samples import greedy, spread, write, write_spectrograms
from muomni.train.stages import stage as make_stage
from muomni.train.stages.spoken_samples import MAX_FRAMES, longest_fitting

SmallRun = Callable[..., RunConfig]

FILES = {
    "text": {"continuations.txt"},
    "audio": {"transcripts.txt"},
    "vision": {"captions.txt"},
    "codec": {"spectrogram.png", "recording.wav", "copy.wav"},
    "vocoder": {"spectrogram.png", "recording.wav", "vocoder.wav", "copy.wav"},
    "omni": {"answers.txt"},
    "talker": {"spectrogram.png", "said.wav"},
}


def _written(name: str, trained: Path, run: RunConfig, directory: Path) -> tuple[Path, dict[str, float]]:
    """The samples of a trained stage, written into directory/samples/step-00000007."""
    stage = make_stage(run)
    torch.manual_seed(0)
    model = _model(stage, trained)
    values = write(stage, model, directory, step=7)
    return directory / "samples" / "step-00000007", values


def _model(stage: Any, trained: Path) -> nn.Module:
    from muomni.train import checkpoint
    from muomni.train.stage import load_owned

    model = stage.build(stage.run, trained)
    saved = checkpoint.load(trained / stage.name)
    assert saved is not None
    load_owned(model, saved.weights, saved=stage.saved, where=trained)
    return model.eval()


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_writes_its_few_files_and_the_same_bytes_again(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    first, values = _written(name, trained, small_run(name), tmp_path / "a")
    again, same = _written(name, trained, small_run(name), tmp_path / "b")
    assert {path.name for path in first.iterdir()} == FILES[name]
    assert values == same
    assert all(key.startswith("sample/") for key in values)
    for path in first.iterdir():
        assert path.stat().st_size > 0
        assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.usefixtures("small_data")
def test_written_samples_show_held_out_items_with_what_is_right(
    trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    def lines(name: str, file: str, key: str) -> list[str]:
        folder, _ = _written(name, trained, small_run(name), tmp_path / name)
        rows = (folder / file).read_text(encoding="utf-8").splitlines()
        return [row.removeprefix(f"{key}:").strip() for row in rows if row.startswith(f"{key}:")]

    spoken = {item.text for item in embedded.SET.speech("validation")}
    assert (found := lines("audio", "transcripts.txt", "said")) and set(found) <= spoken
    labels = {item.label for item in embedded.SET.pictures("validation")}
    assert (found := lines("vision", "captions.txt", "picture")) and set(found) <= labels
    turns = {" | ".join(c.turns[1].splitlines()) for c in embedded.SET.conversations("validation")}
    assert (found := lines("text", "continuations.txt", "recorded")) and set(found) <= turns
    assert len(lines("omni", "answers.txt", "right")) == 4


@pytest.mark.usefixtures("small_data")
def test_spoken_samples_are_as_long_as_what_they_show(
    trained: Path, tmp_path: Path, small_run: SmallRun
) -> None:
    folder, values = _written("codec", trained, small_run("codec"), tmp_path / "codec")
    clips = [-(-item.n_samples // 1_280) for item in embedded.SET.speech("validation")]
    n_frames = max(n for n in clips if n <= MAX_FRAMES)
    for name in ("recording.wav", "copy.wav"):
        waveform, rate = soundfile.read(folder / name)
        assert (len(waveform), rate) == (n_frames * 1_280, 16_000)
    assert _size(folder / "spectrogram.png") == (n_frames * 8, 2 * 128 + 1)
    assert 0.0 < values["sample/log-mel error"] < 20.0
    folder, values = _written("vocoder", trained, small_run("vocoder"), tmp_path / "vocoder")
    for name in ("recording.wav", "vocoder.wav", "copy.wav"):
        assert len(soundfile.read(folder / name)[0]) == n_frames * 1_280
    assert _size(folder / "spectrogram.png") == (n_frames * 8, 3 * 128 + 2)
    assert 0.0 < values["sample/log-mel error"] < 20.0
    folder, values = _written("talker", trained, small_run("talker"), tmp_path / "talker")
    waveform, _ = soundfile.read(folder / "said.wav")
    assert len(waveform) == values["sample/frames"] * 1_280


def _size(path: Path) -> tuple[int, int]:
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_greedy_of_several_prompts_is_that_of_each_alone_by_whole_forwards() -> None:
    """Oracle: the packed forward over the sequence so far, once a token, of one prompt."""
    torch.manual_seed(0)
    thinker = Thinker(debug("nano", "text").model.thinker).eval()
    with torch.no_grad():
        # A tied model repeats its input; with loud attention the next token depends on the places of all before.
        for block in thinker.stack.blocks:
            block.get_parameter("attention.out.weight").mul_(30.0)
    prompts = [torch.randint(300, 1000, (n,)) for n in (5, 11, 3)]
    expected = []
    with torch.no_grad():
        for ids in prompts:
            new: list[int] = []
            for _ in range(9):
                whole = torch.cat([ids, torch.tensor(new, dtype=torch.int64)])
                positions = torch.arange(len(whole))[:, None].expand(-1, 3)
                bounds = torch.tensor([0, len(whole)], dtype=torch.int32)
                hidden = thinker(thinker.embed(whole), positions, bounds, 512)
                token = int(thinker.logits(hidden[-1]).argmax())
                if token == EOS:
                    break
                new.append(token)
            expected.append(new)
        given = [(thinker.embed(i), torch.arange(len(i))[:, None].expand(-1, 3)) for i in prompts]
        assert greedy(thinker, given, max_new=9) == expected
    assert len({tuple(new) for new in expected}) > 1


def test_what_ends_at_once_is_empty_and_does_not_end_the_others() -> None:
    thinker = Thinker(debug("nano", "text").model.thinker).eval()
    wanted = iter([[EOS, 7], [9, 7], [EOS, EOS]])

    def logits(state: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(len(state), 1_024)
        for row, token in enumerate(next(wanted)):
            scores[row, token] = 1.0
        return scores

    thinker.logits = logits  # type: ignore[method-assign]
    ids = [torch.tensor([300, 301]), torch.tensor([302])]
    given = [(thinker.embed(i), torch.arange(len(i))[:, None].expand(-1, 3)) for i in ids]
    with torch.no_grad():
        assert greedy(thinker, given, max_new=9) == [[], [7, 7]]


def test_the_longest_that_fits_is_shown_or_else_the_shortest() -> None:
    assert longest_fitting(["a" * 3, "b" * MAX_FRAMES, "c" * (MAX_FRAMES + 1)], len) == "b" * MAX_FRAMES
    assert longest_fitting(["a" * 40, "b" * 30], len) == "b" * 30


def test_items_are_spread_and_at_most_n() -> None:
    assert spread(list(range(64))) == [0, 16, 32, 48]
    assert spread([1, 2]) == [1, 2]


def test_louder_than_the_brightest_and_not_finite_values_still_make_a_picture(tmp_path: Path) -> None:
    mel = debug("nano", "codec").model.mel
    shown = torch.full((5, mel.n_mels), 1e9)
    shown[2] = float("nan")
    write_spectrograms(tmp_path / "new" / "a.png", [shown, torch.zeros(3, mel.n_mels)], mel)
    assert _size(tmp_path / "new" / "a.png") == (5, 2 * 128 + 1)
