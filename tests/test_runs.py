"""`muomni runs`: the state of every stage as its files tell it, damaged ones by a line, in text and as JSON."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from muomni.alive import identity
from muomni.cli import main
from muomni.config import STAGES
from muomni.runs import find_runs, table

GONE = {**identity(), "since": -1}


def _write(root: Path, stage: str, *, rows: int = 0, **changes: Any) -> Path:
    directory = root / stage
    directory.mkdir(parents=True)
    record = {
        "config": {"model": {"size": "nano"}, "train": {"steps": 600}}, "step": 0, "complete": False, "seconds": 0.0,
    }  # fmt: skip
    (directory / "run.json").write_text(json.dumps({**record, **changes}))
    lines = [
        json.dumps({"step": 10 * i, "loss/token": 5.0 / i, "tokens_per_second": 1000.0 * i})
        for i in range(1, rows + 1)
    ]
    (directory / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return directory


def _stages(folder: Path) -> dict[str, dict[str, Any]]:
    (found,) = find_runs(folder)
    return {stage["stage"]: stage for stage in found["stages"]}


def test_the_state_of_each_stage(tmp_path: Path) -> None:
    root = tmp_path / "my runs" / "first"
    _write(root, "text", rows=60, complete=True, step=600, seconds=83.5)
    _write(root, "audio", rows=12, state="running", started=time.time() - 40, **identity())
    _write(root, "vision", rows=3, state="running", started=1.0, **GONE)
    _write(root, "codec", state="interrupted", error="KeyboardInterrupt: stage codec saved at step 7", step=7)
    _write(root, "omni", rows=1, state="failed", error="DivergedError: five steps", step=15)
    stages = _stages(tmp_path)
    assert list(stages) == list(STAGES)
    assert {name: stage["state"] for name, stage in stages.items()} == {
        "text": "finished", "audio": "running", "vision": "interrupted", "codec": "interrupted",
        "vocoder": "never started", "omni": "failed", "talker": "never started",
    }  # fmt: skip
    text = stages["text"]
    assert (text["step"], text["steps"], text["size"], text["seconds"]) == (600, 600, "nano", 83.5)
    assert text["loss"] == {"token": pytest.approx(5.0 / 60)}
    assert text["tokens_per_second"] == 60_000.0
    assert 0 <= text["age"] < 60
    assert stages["audio"]["step"] == 120
    assert stages["audio"]["seconds"] == pytest.approx(40, abs=5)
    assert (stages["codec"]["step"], stages["codec"]["loss"]) == (7, {})
    assert stages["omni"]["reason"] == "DivergedError: five steps"
    assert (stages["omni"]["step"], stages["talker"]["age"]) == (15, None)


def test_a_stage_of_another_host_is_running_while_it_writes(tmp_path: Path) -> None:
    there = {"state": "running", "started": 1.0, **identity(), "host": "elsewhere"}
    directory = _write(tmp_path / "run", "text", rows=2, **there)
    assert _stages(tmp_path)["text"]["state"] == "running"
    for path in directory.iterdir():
        os.utime(path, (time.time() - 3_600,) * 2)
    assert _stages(tmp_path)["text"]["state"] == "interrupted"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"config": {}}',
        '{"config": {"model": {"size": "nano"}, "train": {"steps": "x"}}}',
        "\x00",
    ],
)
def test_a_damaged_record_is_a_line_and_the_others_are_listed(content: str, tmp_path: Path) -> None:
    _write(tmp_path / "run", "text", complete=True, step=600, seconds=1.0)
    (_write(tmp_path / "run", "audio") / "run.json").write_text(content)
    stages = _stages(tmp_path)
    assert (stages["text"]["state"], stages["audio"]["state"]) == ("finished", "damaged")
    assert str(tmp_path / "run" / "audio" / "run.json") in stages["audio"]["reason"]
    assert all("\n" not in line for line in table(find_runs(tmp_path)))


def test_a_torn_log_gives_its_last_whole_row(tmp_path: Path) -> None:
    directory = _write(tmp_path / "run", "text", rows=3)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "eval/bits": 2.0}\n{"step": 50, "loss/to')
    assert _stages(tmp_path)["text"]["step"] == 30


def test_hidden_folders_and_set_aside_stages_are_no_runs(tmp_path: Path) -> None:
    _write(tmp_path / ".cache" / "run", "text")
    _write(tmp_path / "run", "audio", complete=True, step=600, seconds=1.0)
    (tmp_path / "run" / "text.previous").mkdir()
    assert [run["run"] for run in find_runs(tmp_path)] == [str(tmp_path / "run")]
    assert find_runs(tmp_path / "run")[0]["run"] == str(tmp_path / "run"), "a run itself may be named"


def test_lines_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "run", "text", rows=60, complete=True, step=600, seconds=83.5)
    main(["runs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'run'}  nano"
    assert lines[1].split()[:6] == ["text", "finished", "600/600", "token", "0.083", "60,000"]
    assert lines[2].split(":")[1].split(", ")[0].strip() == "audio"
    main(["runs", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(find_runs(tmp_path)))
    (tmp_path / "empty").mkdir()
    main(["runs", str(tmp_path / "empty")])
    assert "no runs here" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["runs", str(tmp_path / "nowhere")])
    assert stop.value.code == 2
    assert "is not a folder" in capsys.readouterr().err


def test_listing_loads_no_torch(tmp_path: Path) -> None:
    code = f"import sys\nfrom muomni.cli import main\nmain(['runs', {str(tmp_path)!r}])\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
