"""`muomni export`: a directory that loads, ONNX beside it, and mistakes as one line with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from muomni.cli import main
from muomni.export import onnx
from muomni.infer import hub
from muomni.infer.session import Session, load


def _run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        main(["export", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_export_writes_a_model_that_speaks_alike(
    run_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a model"
    code, shown, _ = _run("--run", run_root, "--out", out, "--license", "mit", capsys=capsys)
    assert code == 0
    assert f"{out / 'model.safetensors'}: " in shown
    assert "license: mit\n" in (out / "README.md").read_text()
    said = [load(path, device="cpu").speak("the cat").waveform.tolist() for path in (run_root, out)]
    assert said[0] == said[1]


def test_onnx_and_push_get_what_was_written(
    run_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = []

    def write(session: Session, directory: Path) -> onnx.Exported:
        directory.mkdir()
        (directory / "vision.onnx").write_bytes(b"1234")
        return onnx.Exported(files=(directory / "vision.onnx",), notes=("vocoder.onnx: left out",))

    def push(directory: Path, repo_id: str, *, private: bool) -> str:
        pushed.append((directory, repo_id, private, (directory / "onnx" / "vision.onnx").exists()))
        return "https://hub.example/o/x"

    monkeypatch.setattr(onnx, "export_onnx", write)
    monkeypatch.setattr(hub, "push", push)
    out = tmp_path / "m"
    code, shown, _ = _run(
        "--run", run_root, "--out", out, "--onnx", "--push", "o/x", "--private", capsys=capsys
    )
    assert code == 0
    assert f"{out / 'onnx' / 'vision.onnx'}: 4 bytes\nvocoder.onnx: left out\n" in shown
    assert shown.endswith("https://hub.example/o/x\n")
    assert pushed == [(out, "o/x", True, True)]
    # The folder of the other format is no damage of this one.
    load(out, device="cpu")


MISTAKES = {
    "no run": (("--run", "{tmp}/none"), "muomni train"),
    "full place": (("--out", "{tmp}"), "note.txt, which is no file of a model"),
    "repository": (("--push", "nano"), "OWNER/NAME"),
    "licence": (("--license", "my own"), "license: expected an identifier"),
    "figures": (("--figures", "{tmp}/note.txt"), "has no figures"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str, run_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "note.txt").write_text("hello")
    given, expected = MISTAKES[name]
    arguments = [a.format(tmp=tmp_path) for a in given]
    for option, value in (("--run", run_root), ("--out", tmp_path / "m")):
        arguments += [] if option in arguments else [option, str(value)]
    code, _, error = _run(*arguments, capsys=capsys)
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("muomni: ")
    assert expected in error
    assert not (tmp_path / "m").exists()
