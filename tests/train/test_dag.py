"""`muomni train` as a resumable DAG: finished stages are reused after a kill, a changed one retrains its children."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from muomni import recipes
from muomni.cli import main
from muomni.config import STAGES, RunConfig
from muomni.runs import find_runs
from muomni.train import checkpoint

SmallRun = Callable[..., RunConfig]

KILLED = """
import os, signal, sys
from pathlib import Path
import pytest, torch
sys.path.insert(0, {tests!r})
import conftest
from muomni import recipes
from muomni.cli import main
from muomni.train.stages.vision import VisionStage

torch.set_num_threads(1)
data = conftest.small_data.__wrapped__()
next(data)
recipes.recipe = lambda size, name: conftest.small_run(name, steps=3, save_every=1)
losses, seen = VisionStage.losses, []

def dying(self, *arguments):
    seen.append(1)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return losses(self, *arguments)

VisionStage.losses = dying
main(["train", "--run", {run!r}])
"""


def _states(root: Path) -> dict[str, str]:
    (found,) = find_runs(root)
    return {stage["stage"]: stage["state"] for stage in found["stages"]}


def _hashes(root: Path) -> dict[str, str | None]:
    return {name: checkpoint.manifest_hash(root / name) for name in STAGES}


@pytest.mark.usefixtures("small_data")
def test_all_stages_survive_a_kill_and_a_change_retrains_only_its_children(
    tmp_path: Path, small_run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "a run"
    code = KILLED.format(tests=str(Path(__file__).parent), run=str(root))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert _states(root) == {
        "text": "finished", "audio": "finished", "vision": "interrupted", "codec": "never started",
        "vocoder": "never started", "omni": "never started", "talker": "never started",
    }  # fmt: skip
    before = _hashes(root)

    changed: dict[str, float] = {}

    def recipe(size: str, name: str) -> RunConfig:
        run = small_run(name, steps=3, save_every=1)
        lr = changed.get(name, run.optim.lr)
        return dataclasses.replace(run, optim=dataclasses.replace(run.optim, lr=lr))

    monkeypatch.setattr(recipes, "recipe", recipe)
    monkeypatch.setattr(recipes, "LEFT_OUT", {})

    def again() -> list[str]:
        capsys.readouterr()
        main(["train", "--run", str(root)])
        shown = capsys.readouterr().out.splitlines()
        return [line.split()[0] for line in shown if line.endswith("finished before, reused")]

    assert again() == ["text", "audio"]
    assert set(_states(root).values()) == {"finished"}
    first = _hashes(root)
    assert {k: first[k] for k in ("text", "audio")} == {k: before[k] for k in ("text", "audio")}
    rows = (root / "vision" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3], (
        "the killed stage went on where it was saved"
    )

    assert again() == list(STAGES)
    changed["codec"] = 1e-3
    assert again() == ["text", "audio", "vision", "omni"], "vocoder and Talker hang on the codec"
    changed["audio"] = 1e-3
    assert again() == ["text", "vision", "codec", "vocoder"], (
        "omni hangs on the audio encoder, the Talker on omni"
    )
    assert set(_states(root).values()) == {"finished"}
