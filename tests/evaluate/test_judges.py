"""The judges without their packages: what is read, joined, cut and asked for; nothing is fetched."""

import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from muomni_kernels import mel_filterbank

from muomni.errors import UserError
from muomni.evaluate.judges import JUDGES, mos, open_panel, recogniser, speaker


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for every unpacked package."""
    for module in (mos, recogniser, speaker):
        monkeypatch.setattr(module, "fetch", lambda package, cache: tmp_path / package.name)
    return tmp_path


def test_parts_of_the_recogniser_are_joined_once(folder: Path) -> None:
    first, second = (folder / p.name / "data" for p in recogniser.JUDGE.packages)
    first.mkdir(parents=True)
    second.mkdir(parents=True)
    (first / "model.bin.part1").write_bytes(b"one")
    (second / "model.bin.part2").write_bytes(b"two")
    for name in ("config.json", "tokenizer.json", "vocabulary.json"):
        (second / name).write_text(name)
    whole = recogniser.joined(folder)
    assert (whole / "model.bin").read_bytes() == b"onetwo"
    assert (whole / "tokenizer.json").read_text() == "tokenizer.json"
    (first / "model.bin.part1").write_bytes(b"other")
    assert (recogniser.joined(folder) / "model.bin").read_bytes() == b"onetwo"
    assert [path.name for path in folder.glob("*.partial")] == []


@pytest.mark.parametrize(
    ("seconds", "n_windows"),
    # Doubled until 9.01 s are full: 5 to 10, 2 to 16; then whole seconds less 9.01, and one more.
    [(5.0, 1), (2.0, 7), (9.5, 1), (12.2, 3), (20.73, 11)],
)
def test_mos_hears_a_window_every_second(seconds: float, n_windows: int) -> None:
    clip = np.arange(round(seconds * 16_000), dtype=np.float32)
    found = mos.windows(clip)
    assert found.shape == (n_windows, 144_160)
    assert found[0, : min(len(clip), 144_160)].tolist() == clip[:144_160].tolist()
    assert (found[:, 0] == np.arange(n_windows) * 16_000 % len(clip)).all()


def test_mos_is_the_calibrated_overall_rating(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, path: str, options: object, providers: list[str]) -> None:
            assert path.endswith("sig_bak_ovr.onnx")

        def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert inputs["input_1"].shape == (1, 144_160)
            assert np.abs(inputs["input_1"]).max() <= 1
            return [np.array([[1.0, 2.0, 3.0]])]

    runtime = types.SimpleNamespace(SessionOptions=types.SimpleNamespace, InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    rating = mos.MosPredictor(folder)(np.full(16_000, 1.5, np.float32))
    assert rating == pytest.approx(-0.06766283 * 9 + 1.11546468 * 3 + 0.04602535)


def test_mel_power_is_the_centred_spectrogram_of_the_published_encoder() -> None:
    clip = np.random.default_rng(1).standard_normal(5_000).astype(np.float32) * 0.1
    padded = np.pad(clip.astype(np.float64), 200)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = [padded[t * 160 : t * 160 + 400] * window for t in range(1 + 5_000 // 160)]
    filters = mel_filterbank(n_mels=40, n_fft=400, sample_rate=16_000).numpy()
    expected = np.abs(np.fft.rfft(frames)) ** 2 @ filters.T
    np.testing.assert_allclose(speaker.mel_power(clip).numpy(), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("n_samples", "starts"), [(16_000, [0]), (51_200, [0, 77, 154]), (100, [0])])
def test_partial_utterances_overlap_and_a_nearly_empty_last_one_is_dropped(
    n_samples: int, starts: list[int]
) -> None:
    assert speaker.partials(n_samples) == starts


# Where PyTorch's own reader finds each tensor of the package's file.
PLACES = {
    "weight_ih_l0": 269_883, "weight_hh_l0": 433_723, "weight_ih_l1": 1_482_299, "weight_hh_l1": 2_530_875,
    "weight_ih_l2": 3_579_451, "weight_hh_l2": 4_628_027, "bias_ih_l0": 5_676_603, "bias_hh_l0": 5_680_699,
    "bias_ih_l1": 5_684_795, "bias_hh_l1": 5_688_891, "bias_ih_l2": 5_692_987, "bias_hh_l2": 5_697_083,
}  # fmt: skip


def test_speaker_weights_are_read_where_they_lie_and_vectors_have_length_one(folder: Path) -> None:
    raw = np.random.default_rng(2).integers(0, 256, 5_702_000, dtype=np.uint8)
    # Small positive numbers wherever float32 is read: the top byte 0x3c, in every phase of four bytes used.
    for phase in {place % 4 for place in (*PLACES.values(), 6_699, 7_731)}:
        raw[phase + 3 :: 4] = 0x3C
    (folder / "Resemblyzer" / "resemblyzer").mkdir(parents=True)
    (folder / "Resemblyzer" / "resemblyzer" / "pretrained.pt").write_bytes(raw.tobytes())
    encoder = speaker.SpeakerEncoder(folder)
    places = {f"_lstm.{name}": place for name, place in PLACES.items()}
    for name, place in (places | {"_linear.bias": 6_699, "_linear.weight": 7_731}).items():
        part, _, own = name.partition(".")
        tensor = dict(getattr(encoder, part).named_parameters())[own]
        expected = np.frombuffer(raw.tobytes(), "<f4", tensor.numel(), place)
        assert np.array_equal(tensor.detach().numpy().ravel(), expected), name
    clip = np.sin(np.arange(30_000) * 0.05).astype(np.float32) * 0.1
    vector = encoder(clip)
    assert vector.shape == (256,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_quiet_clips_are_raised_to_one_level_and_loud_ones_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "Resemblyzer" / "resemblyzer").mkdir(parents=True)
    (folder / "Resemblyzer" / "resemblyzer" / "pretrained.pt").write_bytes(bytes(5_702_000))
    encoder = speaker.SpeakerEncoder(folder)
    levels: list[float] = []

    def power(clip: np.ndarray) -> torch.Tensor:
        levels.append(20 * math.log10(np.sqrt(np.mean(clip.astype(np.float64) ** 2))))
        return torch.zeros(161, 40)

    monkeypatch.setattr(speaker, "mel_power", power)
    square = np.tile(np.array([1.0, -1.0], np.float32), 12_800)
    for level in (0.001, 0.01, 0.5):
        encoder(square * level)
    assert levels == pytest.approx([-30, -30, 20 * math.log10(0.5)], abs=1e-4)


def test_no_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="n_samples > 0"):
        mos.windows(np.zeros(0, np.float32))


def test_missing_extra_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told: list[str] = []
    with pytest.raises(UserError, match=r"pip install 'muomni\[eval\]'"):
        open_panel(["speaker", "whisper"], cache=tmp_path, tell=told.append)
    assert told == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_to_be_downloaded_is_told_with_its_size(folder: Path) -> None:
    told: list[str] = []
    # The stand-in package is empty: loading fails after the telling.
    with pytest.raises(FileNotFoundError):
        open_panel(["speaker"], cache=folder / "cache", tell=told.append)
    assert "15.7 MB" in told[0]
    assert "Resemblyzer 0.1.4 (pypi, Apache-2.0)" in told[1]


@pytest.mark.parametrize("names", [["wisper"], [""], []])
def test_unknown_judge_is_told(names: list[str]) -> None:
    with pytest.raises(UserError, match="whisper, mos, speaker"):
        open_panel(names)


def test_every_package_is_pinned() -> None:
    for judge in JUDGES.values():
        for package in judge.packages:
            assert len(package.sha256) == 64
            assert package.n_bytes > 0
