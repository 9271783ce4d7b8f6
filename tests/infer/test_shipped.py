"""The model that comes with the package: found by name, whole, and as good as is said of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import muomni
from muomni.evaluate.run import evaluate
from muomni.infer import shipped
from muomni.infer.session import Session
from muomni.models.weights import CheckpointError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "shipped_nano.json"
FIGURES = ("asr.char_error_rate", "codec.mel_error.8", "talker.next_code")
MOST_BYTES = 30_000_000


@pytest.fixture(scope="module")
def nano() -> Session:
    return muomni.load("nano", device="cpu")


def test_a_shipped_model_is_called_by_its_name_and_a_directory_comes_first(
    tmp_path: Path, monkeypatch: Any
) -> None:
    assert shipped.names() == ("nano",)
    assert shipped.find("nano") == shipped.SHIPPED / "nano"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert shipped.find("nano") == Path("nano")
    with pytest.raises(CheckpointError, match="nanoo"):
        muomni.load("nanoo")


def test_it_is_small_and_says_what_it_was_made_of() -> None:
    files = {path.name: path for path in (shipped.SHIPPED / "nano").iterdir()}
    assert sum(path.stat().st_size for path in files.values()) < MOST_BYTES
    card = files["README.md"].read_text(encoding="utf-8")
    for word in (
        "license: cc-by-sa-4.0",
        "asterisk",
        "CC-BY-SA-3.0",
        "hibari-5h",
        "openclipart",
        "Training data",
    ):
        assert word in card, word


@pytest.mark.usefixtures("all_data")
def test_its_figures_are_those_that_were_measured(nano: Session) -> None:
    measured = json.loads(GOLDEN.read_text(encoding="utf-8"))
    again = evaluate(
        nano, None, data="embedded", families=("asr", "codec", "talker"), n=measured["n"], seed=measured["seed"]
    )  # fmt: skip
    found = {figure.name: figure for own in again.families.values() for figure in own.figures}
    told = {row["name"]: row for row in measured["figures"]}
    for name in FIGURES:
        figure, row = found[name], told[name]
        low, high = row["interval"]
        assert low <= figure.value <= high, name
        assert figure.n == row["n"], name
        # Another processor rounds otherwise; a few characters and codes may change.
        assert figure.value == pytest.approx(row["value"], rel=0.05), name


def test_it_answers_in_text_and_speech(nano: Session) -> None:
    reply = nano.chat("hello", max_new_tokens=12)
    assert reply.text.strip() and len(reply.audio) > 0
    assert torch.isfinite(torch.from_numpy(reply.audio.waveform)).all()
