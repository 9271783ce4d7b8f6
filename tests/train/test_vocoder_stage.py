"""Stage vocoder: crops and their log-mel belong together, discriminators wait, each phase changes its own alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muomni.config import RunConfig
from muomni.data import embedded
from muomni.data.audio import audio_frames
from muomni.models.spectral import RESOLUTIONS, SpectralDistance
from muomni.train.stages import stage as make_stage
from muomni.train.stages.vocoder import VocoderStage
from muomni.train.step import Step

pytestmark = pytest.mark.usefixtures("small_data")
SmallRun = Callable[..., RunConfig]


def _run(small_run: SmallRun, *, adversarial_from: float = 0.5, **changes: object) -> RunConfig:
    run = small_run("vocoder", **changes)
    vocoder = dataclasses.replace(run.model.vocoder, adversarial_from=adversarial_from)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, vocoder=vocoder))


def _built(run: RunConfig, root: Path) -> tuple[VocoderStage, torch.nn.Module]:
    torch.manual_seed(0)
    stage = make_stage(run)
    assert isinstance(stage, VocoderStage)
    model = stage.build(run, root)
    stage.set_mode(model)
    return stage, model


def test_a_crop_is_what_its_frames_are_the_log_mel_of(trained: Path, small_run: SmallRun) -> None:
    stage, _ = _built(_run(small_run, augment=False), trained)
    batch = stage.batch(3)[0]
    for frames, wave in zip(batch.frames, batch.wave, strict=True):
        assert wave.shape == (len(frames) * 1_280,)
        # From the samples of the crop alone; its first frames reach back into samples before it.
        alone = audio_frames(wave, stage.config.mel)
        torch.testing.assert_close(frames[1:], alone[1:], rtol=0, atol=2e-3)
    assert batch.coded.tolist() == [True, False] * (len(batch.coded) // 2)


def test_every_second_crop_is_given_as_the_codec_hears_it(trained: Path, small_run: SmallRun) -> None:
    stage, model = _built(_run(small_run), trained)
    batch = stage.batch(0)[0]
    codec, vocoder = model.get_submodule("codec"), model.get_submodule("vocoder")
    wave, recorded = stage.made(model, batch)
    with torch.no_grad():
        copies = codec.decode(codec.encode(batch.frames))  # type: ignore[operator]
        for i, coded in enumerate(batch.coded.tolist()):
            given = (copies if coded else batch.frames)[i : i + 1].unflatten(2, (8, 128)).flatten(1, 2)
            torch.testing.assert_close(wave[i : i + 1], vocoder.waveform(given), rtol=0, atol=1e-5)  # type: ignore[operator]
    assert torch.equal(recorded, batch.wave[:, : wave.shape[1]])


def test_discriminators_wait_and_each_phase_changes_its_own(trained: Path, small_run: SmallRun) -> None:
    run = _run(small_run, steps=4)
    stage, model = _built(run, trained)
    step = Step(stage, run, model)
    for i in range(4):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        taken = step([stage.batch(i)], lambda parts: [], step=i)
        moved = {n.split(".")[0] for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
        assert moved == ({"vocoder"} if i < 2 else {"vocoder", "discriminators"})
        assert ("loss/judged" in taken.seen) == ("loss/fooled" in taken.seen) == (i >= 2)


def test_without_discriminators_there_are_none(trained: Path, small_run: SmallRun) -> None:
    stage, model = _built(_run(small_run, adversarial_from=1.0), trained)
    assert stage.phases == ("generator",) and not hasattr(model, "discriminators")
    assert stage.counts(stage.batch(5)[0]).keys() == {"mel", "magnitude"} == stage.weights.keys()


def test_the_distance_is_that_of_a_transform_by_hand() -> None:
    from muomni.recipes import nano

    distance = SpectralDistance(nano().mel)
    draw = torch.Generator().manual_seed(0)
    waves = torch.randn(2, 3, 4_000, generator=draw).double() * 0.1
    found = distance.double()(*waves)
    by_bin, n_values = 0.0, 0
    for n_fft, _ in RESOLUTIONS:
        window = torch.hann_window(n_fft, dtype=torch.float64)
        logs = [
            (torch.fft.rfft(wave.unfold(1, n_fft, n_fft // 4) * window).abs() * 4 / n_fft + 1e-3).log()
            for wave in waves
        ]
        by_bin += float((logs[0] - logs[1]).abs().sum())
        n_values += logs[0].numel()
    assert float(found["magnitude"]) == pytest.approx(by_bin, rel=1e-4)
    assert SpectralDistance.counts(3, 4_000)["magnitude"] == n_values
    same = distance(waves[0], waves[0])
    assert float(same["mel"]) == float(same["magnitude"]) == 0.0


def test_held_out_clips_are_whole(trained: Path, small_run: SmallRun) -> None:
    stage, _ = _built(_run(small_run), trained)
    items = embedded.SET.speech("validation")
    for item, batch in zip(items, stage.held_out("validation"), strict=True):
        assert batch.wave.shape[1] == -(-item.n_samples // 1_280) * 1_280
        expected = torch.from_numpy(stage.source.waveform(item)).clamp(-1, 1)
        torch.testing.assert_close(batch.wave[0, : item.n_samples], expected, rtol=0, atol=2e-5)
