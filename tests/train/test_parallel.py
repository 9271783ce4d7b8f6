"""A run is the same on one process and on two, which talk over gloo on the CPU."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from muomni.config import FREE, STAGES, RunConfig
from muomni.errors import UserError
from muomni.models.weights import load_weights
from muomni.train import checkpoint
from muomni.train.metrics import read_rows
from muomni.train.world import Joined, World

sys.path.insert(0, str(Path(__file__).parent))
import together as t
import toy

ROOT = Path(__file__).resolve().parents[2]
SmallRun = Callable[..., RunConfig]
BOTH = pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])


def _logged(directory: Path, wanted: str = "loss/") -> torch.Tensor:
    """(steps, terms) of every logged step."""
    rows = [[v for k, v in row.items() if k.startswith(wanted)] for row in read_rows(directory)]
    return torch.tensor(rows, dtype=torch.float64)


def _record(directory: Path) -> dict[str, Any]:
    """run.json without time, rounding, and how the run was made."""
    record = json.loads((directory / "run.json").read_text())
    del record["seconds"], record["figures"], record["parents"]
    for name in FREE:
        del record["config"]["train"][name]
    return record


def _figures(directory: Path) -> torch.Tensor:
    figures = json.loads((directory / "run.json").read_text())["figures"]
    return torch.tensor([figure["value"] for figure in figures], dtype=torch.float64)


def _state(directory: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of the newest checkpoint, whole."""
    found = checkpoint.load(directory)
    assert found is not None
    return {k: v.clone() for k, v in {**found.weights, **found.optimizer}.items()}


@pytest.fixture(scope="module")
def alone(small_data: None, small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages trained by one process."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("alone")
    for name in STAGES:
        t.train_stage(small_run(name, steps=4, micro_batches=2), root)
    return root


@BOTH
def test_two_processes_see_the_losses_and_figures_of_one_in_every_stage(
    shard: bool, alone: Path, small_run: SmallRun, tmp_path: Path
) -> None:
    """Among them codebooks that follow all clips, dropout, frozen parts, batches made by the model itself."""
    runs = [small_run(name, steps=4, micro_batches=2, shard=shard, recompute=shard) for name in STAGES]
    assert t.together(2, t.train_stages, runs, tmp_path, t.items(), out=tmp_path / "out") == [0, 0]
    for name in STAGES:
        one, two = alone / name, tmp_path / name
        # Of two gradients the sum is the same in any order, to the last bit; rows meet other loops of the optimizer's
        # vector code than whole tensors do. Discriminators answer to the vocoder's last bits, and it to theirs: there a
        # difference grows with every step.
        grows = 10.0 if name == "vocoder" else 1.0
        room = 1e-6 * grows if shard else 0.0
        torch.testing.assert_close(_logged(two), _logged(one), rtol=room, atol=room)
        # float32 sums of so many squares are not better than this.
        norms = [_logged(where, "grad_norm") for where in (two, one)]
        torch.testing.assert_close(*norms, rtol=1e-5 * grows, atol=1e-6 * grows)
        torch.testing.assert_close(_figures(two), _figures(one), rtol=1e-5 * grows, atol=1e-6 * grows)
        assert _record(two) == _record(one)


@BOTH
def test_each_phase_gets_the_gradients_of_all_processes(shard: bool, tmp_path: Path) -> None:
    """Two optimizers, rows that cannot be shared evenly, a scalar, a frozen layer; micro-batches of 1 to 5 items."""
    optim = {"ema_decay": 0.9, "spike_sigma": 6.0, "spike_window": 2, "grad_clip": 0.1}
    toy.train_toy(toy.toy_run(10, optim=optim), tmp_path / "one", toy.Wish(nan_at=13))
    run = toy.toy_run(10, shard=shard, optim=optim)
    two = tmp_path / "two"
    assert t.together(2, toy.train_toy, run, two, toy.Wish(nan_at=13), out=tmp_path / "out") == [0, 0]
    rows = [read_rows(root / "text") for root in (tmp_path / "one", two)]
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"tokens_per_second", "memory_mib", "mfu"}:
            same = pytest.approx(one[key], rel=1e-5, abs=1e-6) if one[key] is not None else None
            assert other[key] == same, (one["step"], key)
    assert rows[0][-1]["skipped"] == 1 and rows[0][-1]["fill_rate"] > 0
    one, other = (_state(root / "text") for root in (tmp_path / "one", two))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_sharded_checkpoint_loads_on_one_process_and_back_bit_for_bit(tmp_path: Path) -> None:
    sharded, plain = toy.toy_run(4, save_every=2, keep=9, shard=True), toy.toy_run(4, save_every=2)
    assert t.together(2, toy.train_toy, sharded, tmp_path, out=tmp_path / "out") == [0, 0]
    folder = tmp_path / "text" / "checkpoints"
    done = {p.name for p in (folder / "step-00000004").iterdir()}
    # The end of a stage is for its children and for inference.
    assert "weights.safetensors" in done and "optimizer.safetensors" not in done
    whole = load_weights(folder / "step-00000004" / "weights.safetensors")
    assert all(torch.equal(v, whole[k]) for k, v in _state(tmp_path / "text").items() if k in whole)
    # Stopped between its last step and its figures: no step is left that would wake FSDP2.
    record = json.loads((tmp_path / "text" / "run.json").read_text())
    checkpoint.write_json(tmp_path / "text" / "run.json", {**record, "complete": False})
    assert t.together(2, toy.train_toy, sharded, tmp_path, out=tmp_path / "out") == [0, 0]
    assert _figures(tmp_path / "text").tolist() == [f["value"] for f in record["figures"]]
    # Step 2 is in rows: there is no file that one process wrote alone.
    for file in (folder / "step-00000004").iterdir():
        file.unlink()
    rows = {p.name for p in (folder / "step-00000002").iterdir()}
    assert (
        len([name for name in rows if name.startswith("shard-")]) == 2 and "weights.safetensors" not in rows
    )
    first = _state(tmp_path / "text")
    assert first["toy.table"].shape == (7, toy.WIDTH) and first["main/toy.table/exp_avg"].any()
    toy.copy_checkpoint(plain, tmp_path / "text", tmp_path / "a")
    assert t.together(
        2, toy.copy_checkpoint, sharded, tmp_path / "a", tmp_path / "b", out=tmp_path / "out"
    ) == [0, 0]
    assert t.together(
        2, toy.copy_checkpoint, plain, tmp_path / "b", tmp_path / "c", out=tmp_path / "out"
    ) == [0, 0]
    toy.copy_checkpoint(plain, tmp_path / "c", tmp_path / "d")
    for name in "abcd":
        other = _state(tmp_path / name)
        assert other.keys() == first.keys()
        assert all(torch.equal(value, other[key]) for key, value in first.items()), name
        kinds = [
            p.name.startswith("shard-") for p in (tmp_path / name / "checkpoints" / "step-00000002").iterdir()
        ]
        assert any(kinds) == (name == "b")


def _history(log: Path, micro_batches: int) -> list[int]:
    """Positions of the finished run: what a killed process had taken after its last checkpoint is taken back."""
    found: list[list[int]] = []
    for text in log.read_text().splitlines():
        start, position = map(int, text.split())
        if not found or found[-1][0] != start:
            found.append([start])
        found[-1].append(position)
    kept: list[int] = []
    for _, *positions in found:
        first = min(positions) // micro_batches * micro_batches
        kept = [p for p in kept if p < first] + positions
    return kept


def test_every_batch_is_used_once_through_five_kills_and_other_numbers_of_processes(tmp_path: Path) -> None:
    """1 -> 2 -> 1 -> 2 -> 1 -> 2 processes, all but the last killed; the end is that of a run nobody stopped."""
    steps, n = 90, 2
    run = toy.toy_run(steps, save_every=3, micro_batches=n)
    draw = torch.Generator().manual_seed(0)
    reached = 0
    for turn, (size, shard) in enumerate(
        [(1, False), (2, False), (1, False), (2, True), (1, True), (2, True)]
    ):
        turned = dataclasses.replace(run, train=dataclasses.replace(run.train, shard=shard))
        wish = toy.Wish(log=tmp_path / "log", turn=turn, slow=0.002)
        processes = t.start(size, toy.train_toy, turned, tmp_path, wish, out=tmp_path / "out")
        if turn < 5:
            # Some way behind the checkpoint it went on from, at a random moment of a step or of a save.
            wanted = f"step-{reached + 3 * int(torch.randint(1, 6, (), generator=draw)):08d}"
            while not any(p.name >= wanted for p in (tmp_path / "text" / "checkpoints").glob("step-*")):
                assert any(p.is_alive() for p in processes)
                time.sleep(0.005)
            time.sleep(0.05 * float(torch.rand((), generator=draw)))
            assert t.kill(processes) == [-signal.SIGKILL] * size
            reached = checkpoint.newest_step(tmp_path / "text") or 0
            assert 0 < reached < steps
        else:
            assert t.finish(processes) == [0, 0]
    assert sorted(_history(tmp_path / "log", n)) == list(range(steps * n))
    toy.train_toy(run, tmp_path / "straight")
    end, straight = _state(tmp_path / "text"), _state(tmp_path / "straight" / "text")
    assert end.keys() == straight.keys()
    for name, value in straight.items():
        torch.testing.assert_close(end[name], value, rtol=1e-5, atol=1e-6, msg=name)
    rows = [_logged(root / "text") for root in (tmp_path, tmp_path / "straight")]
    torch.testing.assert_close(*rows, rtol=1e-5, atol=1e-6)


def test_a_signal_to_one_process_saves_the_same_step_in_all(tmp_path: Path) -> None:
    run = toy.toy_run(5_000, shard=True)
    processes = t.start(2, toy.train_toy, run, tmp_path, out=tmp_path / "out")
    while len(read_rows(tmp_path / "text")) < 3:
        assert all(p.is_alive() for p in processes)
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert t.finish(processes) == [75, 75]
    step = checkpoint.newest_step(tmp_path / "text")
    assert step and t.said(tmp_path / "out") == [f"stage text saved at step {step} of 5000"]


def test_an_error_of_one_process_ends_all_with_one_line(tmp_path: Path) -> None:
    wish = toy.Wish(fail_at=7)
    assert t.together(2, toy.train_toy, toy.toy_run(), tmp_path, wish, out=tmp_path / "out") == [2, 2]
    assert t.said(tmp_path / "out") == ["item 7: cannot be read; remove it."]


def test_a_killed_process_ends_the_others_with_one_line(tmp_path: Path) -> None:
    processes = t.start(2, toy.train_toy, toy.toy_run(100_000), tmp_path, out=tmp_path / "out")
    while len(read_rows(tmp_path / "text")) < 3:
        assert all(p.is_alive() for p in processes)
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGKILL)
    assert t.finish(processes) == [2, -signal.SIGKILL]
    (line,) = t.said(tmp_path / "out")
    assert re.fullmatch(r"process 0 of 2 has lost another one.*run again.*", line)


def test_micro_batches_that_cannot_be_shared_are_one_line() -> None:
    assert World(0, 3).share(6) == 2
    with pytest.raises(
        UserError, match=r"train.micro_batches: 4 .* 3 processes; set a multiple of 3"
    ) as error:
        World(2, 3).share(4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"optim": {"name": "muon"}}, "optim.name=muon: needs whole matrices"),
        ({"compile": "on"}, "train.compile=on: needs one graph"),
        ({"micro_batches": 3}, "train.micro_batches: 3 cannot be shared"),
    ],
    ids=["muon", "compile", "micro_batches"],
)
def test_what_sharding_cannot_do_is_one_line(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    run = toy.toy_run(shard=True, **change)
    assert t.together(2, toy.train_toy, run, tmp_path, out=tmp_path / "out") == [2, 2]
    (told,) = t.said(tmp_path / "out")
    assert told.startswith(line) and "\n" not in told


def test_sharded_checkpoints_hold_no_pickle(tmp_path: Path) -> None:
    """By what is written, and by what is called: storage other than safetensors' writes pickled metadata."""
    run = toy.toy_run(2, shard=True, save_every=1)
    assert t.together(2, toy.train_toy, run, tmp_path, out=tmp_path / "out") == [0, 0]
    files = [p for p in (tmp_path / "text" / "checkpoints").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".safetensors", ".json"} and len(files) > 8
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".json":
            json.loads(content)
        else:
            header = int.from_bytes(content[:8], "little")
            assert json.loads(content[8 : 8 + header]) and safe_open(path, "pt").keys()
        # Protocols 2 to 5 begin with these bytes, torch's own archives with those of a zip.
        assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"))
    for path in (ROOT / "muomni").rglob("*.py"):
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        names |= {
            a.name
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.ImportFrom)
            for a in n.names
        }
        assert not names & {
            "FileSystemWriter", "FileSystemReader", "async_save", "broadcast_object_list", "all_gather_object",
            "gather_object", "scatter_object_list", "send_object_list", "recv_object_list",
        }, path  # fmt: skip


def test_torchrun_trains_and_one_process_speaks(tmp_path: Path) -> None:
    """`--` ends torchrun's own options, of which --run would be one it does not know for sure."""
    command = [
        *(
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "-m",
            "--",
            "muomni",
            "train",
        ),
        *("--stage", "text", "--run", str(tmp_path), "--set", "train.steps=1", "train.batch_tokens=512"),
        "train.micro_batches=2",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^text: ", done.stdout, re.M)) == 1 and "Warning" not in done.stderr
    assert json.loads((tmp_path / "text" / "run.json").read_text())["complete"]


def test_an_environment_that_is_not_torchruns_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(UserError, match=r"WORLD_SIZE is 2, but RANK.* missing; start with `torchrun") as error,
        Joined(),
    ):
        pass
    assert "\n" not in str(error.value)
