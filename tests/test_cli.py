"""The command line: the user's mistakes are one line with the remedy and a non-zero exit; right use works."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from muomni.cli import main
from muomni.data import embedded


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.webp"
    path.write_bytes(embedded.SET.file(embedded.SET.pictures("test")[0]))
    return path


def wav(path: Path, seconds: float, rate: int) -> Path:
    tone = np.sin(np.arange(round(seconds * rate)) * 0.1).astype(np.float32) * 0.3
    soundfile.write(path, tone, rate)
    return path


def assert_one_line(code: int, error: str, *expected: str) -> None:
    assert code != 0
    lines = error.strip().splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("muomni: ")
    for part in expected:
        assert part in lines[0]


MISTAKES = {
    "missing file": (("chat", "--image", "nowhere.png"), ("nowhere.png", "no such file")),
    "not an image": (("chat", "--image", "{note}"), ("note.txt", "expected png")),
    "zero seconds": (("chat", "--audio", "{silent}"), ("silent.wav", "0 seconds")),
    "too long": (("chat", "--audio", "{long}"), ("11.00 s", "2.56 s", "shorten it")),
    "no model": (("chat", "--text", "hi", "--run", "{tmp}/none"), ("none", "muomni train")),
    "nothing to say": (("say", ""), ("text: is empty",)),
    "no space": (("say", "hello", "--out", "/dev/full"), ("No space left", "another path")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_with_media_or_files(
    name: str, run_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.txt").write_text("hello")
    wav(tmp_path / "silent.wav", 0, 16_000)
    wav(tmp_path / "long.wav", 11, 16_000)
    places = {"note": tmp_path / "note.txt", "silent": tmp_path / "silent.wav", "long": tmp_path / "long.wav"}
    arguments, expected = MISTAKES[name]
    given = [a.format(tmp=tmp_path, **places) for a in arguments]
    if "--run" not in given:
        given += ["--run", str(run_root)]
    code, _, error = run(*given, capsys=capsys)
    assert_one_line(code, error, *expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--size", "nanno"), ("nanno", "did you mean nano")),
        (("--stage", "vison"), ("vison", "did you mean vision")),
        (("--stage", "text", "--set", "optim.lrr=1"), ("optim.lrr", "did you mean optim.lr")),
        (("--stage", "text", "--set", "optim.lr=fast"), ("expected float", "fast")),
        (("--stage", "omni"), ("omni needs stage text", "muomni train --stage text")),
        (("--set", "train.steps=2", "--set", "optim.lr=1e-3"), ("--set: given twice; give it once",)),
    ],
)
def test_mistake_in_training(
    arguments: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = run("train", "--run", tmp_path / "run", *arguments, capsys=capsys)
    assert_one_line(code, error, *expected)


def test_checkpoint_of_another_size_is_refused(
    run_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    shutil.copytree(run_root, root)
    record = json.loads(next(root.glob("text/checkpoints/*/run.json")).read_text())
    (root / "text" / "run.json").write_text(
        json.dumps({**record, "complete": True, "figures": [], "skipped": 0})
    )
    code, _, error = run("train", "--stage", "vision", "--run", root, capsys=capsys)
    assert_one_line(code, error, "another size", "--run")


def test_corrupt_checkpoint_is_named(
    run_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    shutil.copytree(run_root, root)
    path = next(root.glob("omni/checkpoints/*/weights.safetensors"))
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 4
    path.write_bytes(payload)
    code, _, error = run("chat", "--text", "hello", "--run", root, capsys=capsys)
    assert_one_line(code, error, "omni", "muomni train --stage omni")


def test_a_forced_backend_that_cannot_run_is_one_line(
    run_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUOMNI_BACKEND", "rms_norm=none")
    code, _, error = run("say", "hello", "--run", run_root, capsys=capsys)
    assert_one_line(code, error, "rms_norm", "none", "MUOMNI_BACKEND")


def test_an_unwritable_place_is_named(run_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run("say", "hello", "--run", run_root, "--out", "/nowhere/a.wav", capsys=capsys)
    assert_one_line(code, error, "/nowhere/a.wav", "another path")


def test_one_omni_turn_with_speech_to_a_file(
    run_root: Path, picture_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = wav(tmp_path / "asked 8 kHz.wav", 0.6, 8_000)
    out = tmp_path / "reply.wav"
    arguments = ("--text", "what", "--image", picture_file, "--audio", asked, "--out", out, "--json")
    code, shown, error = run("chat", "--run", run_root, *arguments, capsys=capsys)
    assert (code, error) == (0, "")
    reply = json.loads(shown)
    assert reply["audio"] == str(out)
    waveform, rate = soundfile.read(out)
    assert rate == 16_000
    assert len(waveform) == round(reply["timings"]["audio_seconds"] * 16_000)


def test_say_writes_what_it_announces(
    run_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "say.wav"
    code, shown, _ = run("say", "hello", "--run", run_root, "--out", out, capsys=capsys)
    assert code == 0
    assert f"{len(soundfile.read(out)[0]) / 16_000:.2f} s" in shown


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = run("doctor", capsys=capsys)
    assert code == 0
    for word in ("torch", "rms_norm", "triton", "log_mel", "reference"):
        assert word in shown


def test_the_process_exits_with_the_code_and_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "muomni.cli", "train", "--size", "huge"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("muomni: size: 'huge' does not exist")


@pytest.mark.parametrize("chosen", [None, "active"])
def test_threads_wait_without_spinning_unless_told_otherwise(
    chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", chosen or "")
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert os.environ["OMP_WAIT_POLICY"] == (chosen or "passive")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--minutes", "0"), ("minutes", "more than 0")),
        (("--size", "tinny"), ("tinny", "did you mean tiny")),
        (("--threads", "0"), ("threads", "at least 1")),
        (("--size", "tiny", "--check"), ("no margins", "tiny")),
        (("--check", "--no-evaluate"), ("--check", "--no-evaluate")),
        (("--data", "nowhere"), ("'nowhere' is not prepared",)),
    ],
)
def test_mistake_in_a_speedrun(
    arguments: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = run("speedrun", "--run", tmp_path / "run", *arguments, capsys=capsys)
    assert_one_line(code, error, *expected)
    assert not (tmp_path / "run" / "text").exists()
