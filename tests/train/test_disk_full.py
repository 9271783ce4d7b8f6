"""A disk that is really full, while training: one line, exit code 2, nothing damaged, and the run goes on later."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from muomni import cli, demo
from muomni.config import RunConfig
from muomni.data.text import train_tokenizer
from muomni.models.weights import load_weights, newest_complete
from muomni.train import checkpoint
from muomni.train.meter import Meter
from muomni.train.stage import Figure, Parts, StageBase, generator

DISK_BYTES = 1 << 20
PAGE_BYTES = 4096
STEPS, SAVE_EVERY = 60, 10


class WideStage(StageBase):
    """Regression with checkpoints of 200 kB; it calls `before` ahead of each micro-batch."""

    name = "text"
    saved = ("layer",)
    weights = {"square": 1.0}  # noqa: RUF012
    before: Callable[[int], None] | None = None

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        return Parts(layer=nn.Linear(64, 256))

    def batch(self, position: int, parts: int = 1) -> list[torch.Tensor]:
        if self.before is not None:
            self.before(position)
        return [torch.randn(8, 64, generator=generator(0, position))]

    def counts(self, batch: torch.Tensor) -> dict[str, torch.Tensor | int]:
        return {"square": len(batch)}

    def losses(self, model: nn.Module, batch: torch.Tensor, phase: str) -> dict[str, torch.Tensor]:
        out = model.get_submodule("layer")(batch) + 0.01 * torch.randn(len(batch), 256)
        return {"square": (out - batch.repeat(1, 4)).square().sum()}

    def fill(self, batch: torch.Tensor) -> tuple[int, int]:
        return len(batch), len(batch)

    def evaluate(self, model: nn.Module, split: str) -> list[Figure]:
        total = sum(float(p.double().sum()) for p in model.parameters())
        return [Figure(name="sum of weights", value=total, baseline=0.0, baseline_name="zero")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command on this machine: no small disk to fill")
    if done.returncode:
        pytest.skip(f"a small disk may not be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def _fill(disk: Path, *, leave: int) -> None:
    """Take all the room of the disk but `leave` bytes, a multiple of PAGE_BYTES."""
    with (disk / "filler").open("wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(disk).free - leave))
    assert shutil.disk_usage(disk).free == leave


def _train(root: Path, monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None] | None = None) -> int:
    """`muomni train --stage text` of a toy. Returns the exit code."""

    def stage(run: RunConfig) -> WideStage:
        made = WideStage(run)
        made.before = before
        return made

    monkeypatch.setattr(demo, "stage", stage)
    settings = [
        f"train.steps={STEPS}",
        f"train.save_every={SAVE_EVERY}",
        "train.log_every=1",
        "train.workers=0",
    ]
    try:
        cli.main(["train", "--stage", "text", "--run", str(root), "--set", *settings])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def _end(root: Path) -> tuple[dict[str, torch.Tensor], list[Any], dict[str, Any]]:
    """Weights and moments, losses by step, and run.json, without times."""
    path = newest_complete(root / "text")
    assert path is not None and path.name == f"step-{STEPS:08d}"
    state = load_weights(path / "weights.safetensors") | load_weights(path / "optimizer.safetensors")
    rows = [json.loads(line) for line in (root / "text" / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((root / "text" / "run.json").read_text())
    return state, [(row["step"], row["loss/square"]) for row in rows], record | {"seconds": 0}


@pytest.fixture(scope="module")
def straight(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, torch.Tensor], list[Any], dict[str, Any]]:
    """The end of a run whose disk was never full."""
    root = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        assert _train(root, patch) == 0
    return _end(root)


CASES = {
    "room for rows, none for a checkpoint": (
        25,
        16 * PAGE_BYTES,
        20,
        "no space left on the device while saving",
    ),
    "no room at all": (25, 0, 20, "o space left on "),
    "no room before the first checkpoint": (2, 0, None, "o space left on "),
    "no room after the last save began": (
        STEPS - 1,
        PAGE_BYTES,
        50,
        "no space left on the device while saving",
    ),
}
"""Step at which the disk fills up, bytes left, the checkpoint there is then, and what the line says."""


@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    case: str, disk: Path, straight: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The end is that of a run whose disk was never full, bit for bit."""
    at, leave, last, message = CASES[case]
    root = disk / "run"

    def before(position: int) -> None:
        if position == at:
            # A checkpoint is written while training goes on: the one that is expected is to be whole.
            ends = time.monotonic() + 20.0
            while last is not None and time.monotonic() < ends:
                if (there := checkpoint.load(root / "text")) and there.record["step"] == last:
                    break
                time.sleep(0.01)
            _fill(disk, leave=leave)

    assert _train(root, monkeypatch, before) == cli.EXIT_USER_ERROR
    told = capfd.readouterr().err.strip()
    assert told.startswith("muomni: ") and "\n" not in told and message in told, told
    found = checkpoint.load(root / "text")
    assert (found.record["step"] if found else None) == last
    assert json.loads((root / "text" / "run.json").read_text())["complete"] is False
    # Again while the disk is full: a second line, and what there is stays.
    rows = (root / "text" / "metrics.jsonl").read_text()
    (disk / "more").write_bytes(bytes(shutil.disk_usage(disk).free))
    assert _train(root, monkeypatch) == cli.EXIT_USER_ERROR
    told = capfd.readouterr().err.strip()
    assert "o space left on " in told and "\n" not in told, told
    # Without a checkpoint the run begins anew, and so do its rows.
    assert last is None or (root / "text" / "metrics.jsonl").read_text() == rows
    assert not [p for p in root.rglob("*") if p.name.startswith(".")], "nothing half written is left"
    for name in ("filler", "more"):
        (disk / name).unlink()
    assert _train(root, monkeypatch) == 0
    state, losses, record = _end(root)
    assert state.keys() == straight[0].keys()
    assert [k for k in state if not torch.equal(state[k], straight[0][k])] == []
    assert (losses, record) == straight[1:]
    assert (root / "text" / "loss.svg").read_text().endswith("</svg>\n")


def test_a_disk_full_at_the_very_end_costs_no_step(
    disk: Path, straight: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last checkpoint is there; the plot and the record of the finished run are not."""
    root = disk / "run"
    with monkeypatch.context() as patch:
        real = WideStage.evaluate

        def evaluate(stage: WideStage, model: nn.Module, split: str) -> list[Figure]:
            _fill(disk, leave=0)
            return real(stage, model, split)

        patch.setattr(WideStage, "evaluate", evaluate)
        assert _train(root, patch) == cli.EXIT_USER_ERROR
    told = capfd.readouterr().err.strip()
    assert told.startswith("muomni: ") and "loss.svg: No space left" in told and "\n" not in told, told
    assert not (root / "text" / "loss.svg").exists()
    assert json.loads((root / "text" / "run.json").read_text())["complete"] is False
    (disk / "filler").unlink()

    def before(position: int) -> None:
        raise AssertionError(f"position {position} is trained again")

    assert _train(root, monkeypatch, before) == 0
    state, *rest = _end(root)
    assert [k for k in state if not torch.equal(state[k], straight[0][k])] == [] and tuple(rest) == straight[
        1:
    ]


def test_a_row_cut_by_the_full_disk_is_left_out(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root, path = disk / "run", disk / "run" / "text" / "metrics.jsonl"
    # A page holds some 20 rows; no save comes before it is full. One time in 200 its end is that of a row:
    # then rows of another length are tried.
    values = Meter.values
    for attempt in range(3):
        shutil.rmtree(root, ignore_errors=True)
        monkeypatch.setattr(Meter, "values", lambda self, n=10**attempt: {**values(self), "attempt": n})
        monkeypatch.setattr(checkpoint, "save", lambda *_, **__: root)
        assert (
            _train(root, monkeypatch, lambda position: _fill(disk, leave=0) if position == 3 else None) == 2
        )
        monkeypatch.undo()
        (disk / "filler").unlink()
        if not path.read_text().endswith("\n"):
            break
    assert not path.read_text().endswith("\n"), "the page was full in the middle of a row"
    assert _train(root, monkeypatch) == 0
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, STEPS + 1))


def test_a_tokenizer_is_whole_or_absent(disk: Path) -> None:
    """Half a tokenizer.json would make every later stage fail."""
    tokenizer = train_tokenizer(["some words and other words, and more of them"] * 3, 280)
    _fill(disk, leave=PAGE_BYTES)
    with pytest.raises(OSError, match="No space left") as error:
        tokenizer.save(disk / "tokenizer.json")
    assert error.value.filename == str(disk / "tokenizer.json")
    assert [p.name for p in disk.iterdir()] == ["filler"]
