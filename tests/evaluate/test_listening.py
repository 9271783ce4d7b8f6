"""Paths of speech keep time; pooled figures are sums over sums; the command writes what it says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muomni.cli import main
from muomni.data.items import Item, Kind, Source, SpeechItem, Split
from muomni.errors import UserError
from muomni.evaluate import speech_speed
from muomni.evaluate.judges import Panel
from muomni.evaluate.listening import chosen_items, judged, listen
from muomni.evaluate.speech_page import rows_of
from muomni.evaluate.speech_paths import CODEC, GRIFFIN_LIM, ORIGINAL, SAY, VOCODER, resynthesis
from muomni.infer.session import Session
from muomni.infer.stream import Audio
from muomni.models.griffin_lim import GriffinLim
from muomni.models.omni import parameter_table

TEXTS = {
    "one two three": "a", "four five six seven": "a", "nine ten eleven": "b", "too short": "a",
    " ".join(["long"] * 31): "a", "uno dos tres": "c",
}  # fmt: skip


class Tones(Source):
    """A tone burst a text, 0.8 s."""

    def items(self, kind: Kind, split: Split) -> list[Item]:
        return [
            SpeechItem(
                id=text, text=text, raw_text=text, speaker=voice, synthetic=True, split=split, n_samples=12_800,
                language="es" if voice == "c" else "en",
            )
            for text, voice in TEXTS.items()
        ]  # fmt: skip

    def file(self, item: Item) -> bytes:
        raise AssertionError("a tone has no file")

    def waveform(self, item: Any) -> np.ndarray:
        return burst(item.n_samples, 5_000)


def burst(n_samples: int, centre: int) -> np.ndarray:
    """1 kHz under a Gaussian of 400 samples around a sample."""
    t = np.arange(n_samples)
    return (0.5 * np.sin(t * 0.3927) * np.exp(-(((t - centre) / 400) ** 2))).astype(np.float32)


def centre_of(waveform: np.ndarray) -> float:
    power = waveform.astype(np.float64) ** 2
    return float((power * np.arange(len(power))).sum() / power.sum())


def table(figures: list[Any]) -> dict[tuple[str, str], Any]:
    return {(f.path, f.metric): f for f in figures}


@pytest.mark.parametrize("n_samples", [9_000, 12_801, 16_000])
def test_every_path_gives_as_many_samples_as_it_gets(session: Session, n_samples: int) -> None:
    paths = resynthesis(session)
    assert list(paths) == [ORIGINAL, VOCODER, GRIFFIN_LIM, CODEC]
    for name, path in paths.items():
        out = path(burst(n_samples, 4_000))
        assert out.shape == (n_samples,), name
        assert out.dtype == np.float32
        assert np.abs(out).max() <= 1


def test_no_path_moves_a_sound_by_as_much_as_a_frame(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A perfect codec: whatever moves the sound then is the path. Of an untrained vocoder no sound comes; that it keeps
    # time is shown on exact spectra (tests/models/test_vocoder.py).
    config, codec = session.config, session.engine.model.codec
    session.engine.model.vocoder = GriffinLim(config.mel, config.griffin_lim)
    monkeypatch.setattr(codec, "encode", lambda frames: frames)
    monkeypatch.setattr(codec, "decode", lambda codes: codes)
    paths = resynthesis(session)
    assert list(paths) == [ORIGINAL, GRIFFIN_LIM, CODEC]
    for name, path in paths.items():
        assert abs(centre_of(path(burst(16_000, 7_777))) - 7_777) < 40, name


def test_speech_is_whole_code_frames(session: Session) -> None:
    assert len(session.speak("one two three").waveform) % (8 * 160) == 0


def test_pooled_figure_and_its_interval_are_those_of_a_hand_computation() -> None:
    # Four items drawn with replacement: the first comes k times, k binomial (4, 1/4): 0 in 32 % of the draws, at most 2
    # in 95 %, at most 3 in 99.6 %. Three times it is 3 * 2 errors in 3 * 3 + 1 characters.
    figure = judged("say", "cer", [2, 0, 0, 0], [3, 1, 1, 1], seeds=(3,))
    assert figure.value == pytest.approx(2 / 6)
    assert figure.interval == pytest.approx((0.0, 0.6))
    assert (figure.n, figure.seeds, figure.unit, figure.better) == (4, (3,), "errors/character", "lower")


def test_figures_are_those_of_a_listener_who_always_hears_the_same(session: Session) -> None:
    panel = Panel(
        recognise=lambda waveform: "One, 2 three.",
        mos=lambda waveform: 3.5,
        voice=lambda waveform: np.array([0.6, 0.8], np.float32),
    )
    session.engine.model.talker.voices.name(["a", "b"])
    result = listen(session, Tones(), panel, n=10, seeds=(0, 1))
    # Two words, 31 words and another language are left out.
    assert [item.text for item in result.items] == ["one two three", "four five six seven", "nine ten eleven"]
    figures = table(result.figures)
    for path in (ORIGINAL, VOCODER, GRIFFIN_LIM, CODEC, SAY):
        # Of 3, 4 and 3 words 0, 4 and 3 are wrong.
        assert figures[path, "wer"].value == pytest.approx(7 / 10)
        assert figures[path, "mos"].value == pytest.approx(3.5)
        assert figures[path, "wer"].n == 3
    assert figures[SAY, "wer"].seeds == (0, 1)
    assert figures[CODEC, "speaker"].value == pytest.approx(1)
    assert figures[ORIGINAL, "same_speaker"].n == 2
    assert figures[SAY, "other_voice"].n == 3 and figures[SAY, "other_voice"].value == pytest.approx(1)
    lengths = [[len(h.waveform) for h in heard if h.path == SAY] for heard in result.heard]
    near = [np.mean([abs(n - 12_800) <= 8_000 for n in own]) for own in lengths]
    assert figures[SAY, "ends"].value == pytest.approx(np.mean(near))
    assert figures[ORIGINAL, "other_speaker"].n == 3
    assert (ORIGINAL, "speaker") not in figures
    assert {path for path, metric in figures if metric == "stft"} == {VOCODER, GRIFFIN_LIM, CODEC}
    # A spectrogram that is inverted is nearer than what an untrained codec makes of it.
    assert figures[GRIFFIN_LIM, "stft"].value < figures[CODEC, "stft"].value
    assert [(h.path, h.seed) for h in result.heard[0]][-2:] == [(SAY, 0), (SAY, 1)]


@pytest.mark.parametrize(
    ("n", "taken"), [(2, "ab"), (3, "abc"), (5, "aabbc"), (7, "aaaabbc"), (99, "aaaaaabbc")]
)
def test_speakers_have_even_shares_as_far_as_they_have_recordings(
    session: Session, monkeypatch: pytest.MonkeyPatch, n: int, taken: str
) -> None:
    items = [
        SpeechItem(
            id=f"{i}", text=f"one two three {i}", raw_text="", speaker=voice, synthetic=True, split="test", n_samples=1
        )
        for i, voice in enumerate("aaaaaabbc")
    ]  # fmt: skip
    monkeypatch.setattr(Tones, "items", lambda self, kind, split: items)
    chosen = chosen_items(session, Tones(), split="test", n=n)
    assert "".join(item.speaker for item in chosen) == taken


def test_no_fit_recording_is_one_line_with_the_remedy(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tones, "items", lambda self, kind, split: [])
    with pytest.raises(UserError, match="--data"):
        listen(session, Tones(), Panel(), n=10)


def test_real_time_factor_is_time_over_sound(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first clip, of whose five parts only the start is read, is slow.
    seconds = iter([*range(0, 500, 100), *range(500, 1_500)])
    monkeypatch.setattr(speech_speed, "_now", lambda device: float(next(seconds)))
    # What is said is 2 s long, what is recorded 0.5 s; every part takes a second a clip.
    monkeypatch.setattr(session, "speak", lambda text, seed: Audio(np.zeros(32_000, np.float32), 16_000))
    parts = {p.part: p for p in speech_speed.measure_speed(session, [(burst(8_000, 4_000), "one two")] * 3)}
    assert {name: part.rtf for name, part in parts.items()} == {
        "mel": 2.0, "codec_encode": 2.0, "codec_decode": 2.0, "vocoder": 2.0, "talker": 0.5 - 4.0, "say": 0.5,
    }  # fmt: skip
    assert all(part.n == 3 and part.n_threads == torch.get_num_threads() for part in parts.values())
    sizes = dict(parameter_table(session.config))
    assert parts["codec_encode"].parameters + parts["codec_decode"].parameters == sizes["codec"]
    assert parts["talker"].parameters == sizes["talker"]


def test_command_writes_figures_and_a_page_that_needs_no_network(
    run_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("muomni.evaluate.speech_run.open_source", lambda names: Tones())
    panel = Panel(recognise=lambda waveform: "one two three", about={"whisper": "a stand-in"})
    asked: list[Any] = []
    monkeypatch.setattr(
        "muomni.evaluate.judges.open_panel", lambda names, **rest: asked.append(names) or panel
    )
    arguments = ["eval", "speech", str(run_root), "--n", "2", "--judges", "whisper", "--shown", "1"]
    main([*arguments, "--out", str(tmp_path), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert asked == [["whisper"]]
    assert shown == json.loads((tmp_path / "speech.json").read_text())
    assert (shown["n"], shown["split"], shown["data"]) == (2, "test", "embedded")
    assert shown["items"][0]["understood"] == dict.fromkeys(
        ("original", "vocoder", "griffin_lim", "codec", "say seed 0"), "one two three"
    )
    page = (tmp_path / "speech.html").read_text()
    assert page.count("<audio") == 5
    assert page.count('class="spectrogram"') == 5
    assert 'src="http' not in page and "<script" not in page and "href=" not in page
    for cell in (cell for row in rows_of(shown) for cell in row):
        assert cell.replace("'", "&#x27;") in page
    main([*arguments, "--out", str(tmp_path)])
    plain = capsys.readouterr().out
    assert "the Talker says the text" in plain
    assert "codec_decode" in plain


@pytest.mark.parametrize("extra", [("--n", "0"), ("--judges", "nobody"), ("--threads", "0")])
def test_mistake_is_one_line(
    run_root: Path, extra: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["eval", "speech", str(run_root), *extra])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
