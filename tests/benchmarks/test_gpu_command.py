"""`python -m benchmarks.gpu`: refuses without a CUDA device, and end to end on a CPU with --device cpu."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, sections

ROOT = Path(__file__).resolve().parents[2]


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_it_says_so_in_one_line() -> None:
    done = _command()
    assert done.returncode == 2 and done.stderr == ""
    assert (
        done.stdout
        == "benchmarks.gpu needs a CUDA device and PyTorch sees none; --device cpu runs a smoke test\n"
    )


def test_on_a_cpu_everything_but_cuda_graphs_runs(tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = _command(
        "--device", "cpu", "--out", str(out), "--only", "swiglu,attention_decode,train,stages,inference"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert done.stdout.startswith(sections.SMOKE)
    summary = (out / "summary.md").read_text()
    assert done.stdout.rstrip().endswith(summary.rstrip()), "the summary comes last"
    assert sections.SMOKE in summary and "kernels: 2 cases timed" in summary
    rows = json.loads((out / "rows.json").read_text())
    assert {row["op"] for row in rows} == {
        "swiglu",
        "attention_decode",
        "train_step",
        "loss_pair",
        "train",
        "infer",
    }
    for row in rows:
        assert {"device", "torch", "triton", "commit", "command", "date"} <= row.keys()
        assert row["command"].startswith("python -m benchmarks.gpu --device cpu")
    pair = next(row for row in rows if row["op"] == "loss_pair")
    assert pair["status"] == "ok" and pair["largest_difference"] < 1e-4
    assert "## Stages" in summary and re.search(r"stages: \d+ rows of ours", summary)
    assert {path.name for path in (out / "plots").iterdir()} == {"swiglu.svg", "attention_decode.svg"}


def test_a_section_that_fails_is_reported_and_the_others_run(tmp_path: Path) -> None:
    run = sections.Run(tmp_path, tmp_path, "cpu")
    done = run.run("broken", sys.executable, "-c", "raise SystemExit('out of order')", limit=20)
    assert done.code == 1 and done.tail == "out of order"
    run.note("broken", "FAILED")
    run.note("next", "ok")
    assert "- broken: FAILED\n- next: ok" in (tmp_path / "summary.md").read_text()
    assert json.loads((tmp_path / "rows.json").read_text()) == []


def _lives(pid: int) -> bool:
    """Whether a process is there and not a zombie that nobody collects."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_section_past_its_limit_is_stopped_with_its_children(tmp_path: Path) -> None:
    child = "import time; print('ready', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid); p.wait()"
    run = sections.Run(tmp_path, tmp_path, "cpu")
    process = run.start("slow", sys.executable, "-c", parent, PYTHONUNBUFFERED="1")
    began = time.monotonic()
    log = tmp_path / "slow.log"
    while "ready" not in log.read_text() and time.monotonic() - began < 20:
        time.sleep(0.02)
    assert sections.stop(process, 0.0) is None
    pid = next(int(word) for word in log.read_text().split() if word.isdecimal())
    while _lives(pid):
        assert time.monotonic() - began < 20, "the child is still there"


def test_a_forced_backend_does_not_reach_the_sections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUOMNI_BACKEND", "reference")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    environment = sections.Run(tmp_path, tmp_path, "cuda").environment
    assert "MUOMNI_BACKEND" not in environment and "TRITON_INTERPRET" not in environment
    assert str(ROOT / "kernels") in environment["PYTHONPATH"].split(os.pathsep)


def test_an_unknown_op_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        gpu.main(["--only", "rms_nrm"])
    assert error.value.code == 2 and "rms_nrm unknown; there are rms_norm" in capsys.readouterr().err


def test_every_op_is_compiled_by_one_worker() -> None:
    assert sorted(op for group in sections.WORKERS for op in group) == sorted(gpu.OPS)


def test_budgets_fit_the_promise() -> None:
    assert gpu.FULL["total"] <= 9 * 60 - 10 and gpu.QUICK["total"] <= 3 * 60 - 5
    for budget in (gpu.FULL, gpu.QUICK):
        parts = (budget[name] for name in ("build", "tests", "train", "stages", "inference"))
        assert sum(parts) < 0.8 * budget["total"], "the kernels get the rest"


def test_earlier_results_are_set_aside(tmp_path: Path) -> None:
    for name in ("run", "run.1"):
        (tmp_path / name).mkdir()
    assert gpu._aside(tmp_path / "run") == tmp_path / "run.2"


class Recorder(sections.Run):
    """Keeps the commands and has rows of its own; nothing is started."""

    def run(self, name: str, *command: str, limit: float) -> sections.Outcome:
        self.commands = [*getattr(self, "commands", []), command]
        return sections.Outcome(code=0, tail="3 passed", seconds=1.0)

    def rows(self) -> list[dict[str, object]]:
        named = {"op": "rope", "variant": "8x4", "status": "ok"}
        return [{**named, "contender": "triton"}, *getattr(self, "more", [])]


def test_a_quick_run_takes_a_part_of_the_tests(tmp_path: Path) -> None:
    run = Recorder(tmp_path, tmp_path, "cuda")
    assert sections.tests(run, 10.0, quick=True) == "ok: 3 passed" and sections.tests(run, 10.0, quick=False)
    quick, full = run.commands
    assert sections.QUICK_TESTS in quick and sections.QUICK_TESTS not in full
    names = (ROOT / "tests" / "kernels" / "test_gpu.py").read_text()
    assert all(f"{word}_" in names for word in sections.QUICK_TESTS.split(" or "))


def test_a_wrong_kernel_of_ours_fails_the_command(tmp_path: Path) -> None:
    run = Recorder(tmp_path, tmp_path, "cuda")
    assert sections.kernels(run, ["rope"], quick=True, limit=9.0, command="c") == "1 cases timed"
    wrong = {"op": "rope", "variant": "8x4", "status": "wrong: output 0"}
    run.more = [{**wrong, "contender": "liger"}]
    assert "FAILED" not in sections.kernels(run, ["rope"], quick=True, limit=9.0, command="c")
    run.more = [{**wrong, "contender": "triton"}]
    found = sections.kernels(run, ["rope"], quick=True, limit=9.0, command="c")
    assert found.startswith("FAILED, 1 of our own, the first rope 8x4 triton: wrong: output 0")


def test_a_step_of_ours_that_is_wrong_fails_the_command(tmp_path: Path) -> None:
    run = Recorder(tmp_path, tmp_path, "cuda")
    step = {"op": "train", "variant": "tiny text", "status": "wrong: first loss 1"}
    run.more = [{**step, "contender": "plain eager, bf16"}]
    assert sections.stages(run, quick=True, limit=9.0, command="c") == "0 rows of ours, 1 s"
    run.more = [{**step, "contender": "ours, bf16"}]
    found = sections.stages(run, quick=True, limit=9.0, command="c")
    assert found.startswith("FAILED, tiny text, ours, bf16: wrong: first loss 1")


def test_a_folder_that_holds_something_else_is_not_moved(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    done = _command("--device", "cpu", "--only", "rope", "--out", str(tmp_path))
    assert done.returncode == 1 and "--out: expected a new or empty folder" in done.stdout
    assert (tmp_path / "precious.txt").read_text() == "mine"
