"""Every stage on data with corrupt samples: the run of a set that never had them, and a list of what was left out."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from muomni import cli, demo
from muomni.config import STAGES, OptimConfig, RunConfig, TrainConfig
from muomni.data import embedded
from muomni.data.media import MAX_TEXT_BYTES, MediaError
from muomni.data.quarantine import NAME, BadDataError
from muomni.models.weights import load_weights, newest_complete
from muomni.recipes import model as sized
from muomni.train.loop import Result, train
from muomni.train.stage import Figure, Parts, StageBase, generator
from muomni.train.stages import stage as make_stage
from muomni.train.timing import time_stage

SmallRun = Callable[..., RunConfig]
NOT_UTF8 = b"caf\xe9".decode("utf-8", "surrogateescape")


def _wav(samples: np.ndarray, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format=kind, subtype=subtype)
    return buffer.getvalue()


def _tone(n_samples: int) -> np.ndarray:
    return (0.5 * np.sin(np.arange(n_samples) / 10)).astype(np.float32)


FILES: dict[str, Callable[[int], bytes]] = {
    "truncated": lambda n: _wav(_tone(n))[:-500],
    "nan": lambda n: _wav(np.full(n, np.nan, np.float32), subtype="FLOAT"),
    "zero": lambda n: _wav(_tone(0)),
    "long": lambda n: _wav(np.zeros(17 * 2**20, np.int16), "FLAC"),
    "image": lambda n: b"RIFF\x10\x00\x00\x00WEBPbroken!!",
    "nothing": lambda n: b"",
}
"""What stands in the place of a clip of n samples, or of a picture."""
WORDS = {"utf8": NOT_UTF8, "empty": " ", "endless": "a" * (MAX_TEXT_BYTES + 1)}


def _with_bad(kind: str, split: str, items: list[Any], media: bool) -> list[Any]:
    """The items, and between them some that are corrupt: one of each kind of corruption."""
    first = items[0]
    bad: list[Any]
    if kind == "conversations":
        bad = [
            dataclasses.replace(first, id=f"bad/{split}/{name}", turns=(*first.turns, text))
            for name, text in WORDS.items()
        ]
    else:
        word = "label" if kind == "pictures" else "text"
        bad = [dataclasses.replace(first, id=f"bad/{kind}/{split}/{name}") for name in FILES if media]
        bad += [
            dataclasses.replace(first, id=f"bad/{kind}/{split}/{name}", **{word: text})
            for name, text in WORDS.items()
        ]
    mixed = list(items)
    for i, item in enumerate(bad):
        mixed.insert(min(2 * i, len(mixed)), item)
    return mixed


@pytest.fixture
def corrupt(small_data: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Called: from then on the embedded set holds corrupt items among its own; for stage text corrupt texts alone."""

    def spoil(name: str) -> None:
        mixed = {
            (kind, s): _with_bad(kind, s, embedded.SET.items(kind, s), name != "text")
            for kind in ("speech", "questions", "pictures", "conversations")
            for s in ("train", "validation", "test")
        }
        real = embedded.SET.file

        def read(item: Any) -> bytes:
            what = item.id.split("/")[-1] if item.id.startswith("bad/") else None
            return FILES[what](getattr(item, "n_samples", 0)) if what in FILES else real(item)

        monkeypatch.setattr(embedded.SET, "items", lambda kind, split: mixed.get((kind, split), []))
        monkeypatch.setattr(embedded.SET, "file", read)

    return spoil


def _root(trained: Path, root: Path, name: str) -> Path:
    """A run directory that holds all stages but this one."""
    shutil.copytree(trained, root)
    shutil.rmtree(root / name)
    if name == "text":
        (root / "tokenizer.json").unlink()
    return root


def _state(result: Result) -> dict[str, torch.Tensor]:
    path = newest_complete(result.directory)
    assert path is not None
    return load_weights(path / "weights.safetensors") | load_weights(path / "optimizer.safetensors")


def _losses(result: Result) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith("loss/") or k == "grad_norm"} for row in rows]


def _listed(directory: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (directory / NAME).read_text().splitlines()]
    assert all(row["reason"] and "\n" not in row["reason"] for row in rows)
    return [(row["split"], row["id"]) for row in rows]


BAD = {"speech": 9, "questions": 9, "pictures": 9, "conversations": 3}
USES = {
    "text": {"speech": 3, "questions": 3, "pictures": 3, "conversations": 3}, "audio": {"speech": 9},
    "vision": {"pictures": 9}, "codec": {"speech": 9, "questions": 9}, "vocoder": {"speech": 9, "questions": 9},
    "omni": BAD, "talker": {"speech": 9},
}  # fmt: skip
"""Corrupt items of each kind that a stage meets; text reads no media."""


@pytest.mark.parametrize("name", STAGES)
def test_a_run_with_corrupt_samples_is_the_run_of_a_set_without_them(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun, corrupt: Callable[[str], None]
) -> None:
    """Bit for bit, also when it is stopped and goes on; each is listed once and counted."""
    run = small_run(name, steps=6, save_every=3, bad_samples=0.9)
    clean = train(make_stage(run), run, _root(trained, tmp_path / "clean", name))
    assert clean.quarantined == {} and not (clean.directory / NAME).exists()
    corrupt(name)
    spoilt = train(make_stage(run), run, _root(trained, tmp_path / "spoilt", name))
    stopped = _root(trained, tmp_path / "stopped", name)

    def stop(step: int, steps: int, row: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_stage(run), run, stopped, progress=stop)
    resumed = train(make_stage(run), run, stopped)
    a = _state(clean)
    for result in (spoilt, resumed):
        b = _state(result)
        assert a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []
        assert _losses(result) == _losses(clean) and len(_losses(clean)) == 6
        assert result.figures == clean.figures
        n_bad = sum(USES[name].values())
        assert result.quarantined == {"train": n_bad, "validation": n_bad}
        listed = _listed(result.directory)
        assert len(listed) == len(set(listed)) == 2 * n_bad
        assert all(id_.startswith("bad/") for _, id_ in listed)
        for kind, count in USES[name].items():
            if kind != "conversations":
                assert sum(id_.startswith(f"bad/{kind}/train") for _, id_ in listed) == count
        record = json.loads((result.directory / "run.json").read_text())
        assert record["quarantined"] == result.quarantined and record["dropped"] == result.dropped
        assert result.dropped == clean.dropped
    reused = train(make_stage(run), run, stopped)
    assert reused.reused and reused.quarantined == resumed.quarantined and reused.dropped == resumed.dropped


@pytest.mark.parametrize("name", STAGES)
def test_more_than_one_percent_stops_every_stage_with_one_line(
    name: str, trained: Path, tmp_path: Path, small_run: SmallRun, corrupt: Callable[[str], None]
) -> None:
    corrupt(name)
    run, root = small_run(name), _root(trained, tmp_path / "root", name)
    assert run.train.bad_samples == 0.01
    with pytest.raises(BadDataError) as error:
        train(make_stage(run), run, root)
    n_bad = sum(USES[name].values())
    message = str(error.value)
    assert message.startswith(f"stage {name}: {n_bad} of ") and "\n" not in message
    assert f"and {n_bad - 3} more" in message and str(root / name / NAME) in message
    assert "at most 1 % may be: bad/" in message and "raise train.bad_samples" in message
    assert len(_listed(root / name)) == 2 * n_bad
    assert not (root / name / "checkpoints").exists()


def test_clips_without_room_are_counted_apart_and_stop_nothing(
    trained: Path, tmp_path: Path, small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too long for the context, and more characters than positions: sound samples, so the budget is not theirs."""
    items = {s: embedded.SET.speech(s) for s in ("train", "validation")}
    whole, real = embedded.SET.items, embedded.SET.file
    more = [
        dataclasses.replace(items["train"][0], id="x/long", n_samples=170_000),
        dataclasses.replace(items["train"][0], id="x/wordy", text="ab " * 100),
    ]
    monkeypatch.setattr(
        embedded.SET, "items",
        lambda kind, split: [*whole(kind, split), *(more if (kind, split) == ("speech", "train") else [])],
    )  # fmt: skip
    monkeypatch.setattr(
        embedded.SET, "file",
        lambda i: _wav(_tone(i.n_samples)) if i.id == "x/long" else real(items["train"][0] if i in more else i),
    )  # fmt: skip
    for name, dropped in (
        ("audio", {"train": 2, "validation": 0}),
        ("talker", {"train": 2, "validation": 0}),
    ):
        run = small_run(name, steps=1)
        result = train(make_stage(run), run, _root(trained, tmp_path / name, name))
        assert result.dropped == dropped and result.quarantined == {}
    run = small_run("omni", steps=1)
    result = train(make_stage(run), run, _root(trained, tmp_path / "omni", "omni"))
    assert result.dropped["train"] >= 1 and result.quarantined == {}


@dataclasses.dataclass(frozen=True)
class Numbered:
    """A sample that is read while training."""

    number: int

    @property
    def id(self) -> str:
        return f"sample {self.number}"


N_SAMPLES, PER_BATCH = 40, 4
BAD_NUMBERS = (5, 17, 18)


class LazyStage(StageBase):
    """Regression on samples read when their batch is made: the room of a bad one stays empty."""

    name = "text"
    saved = ("layer",)
    weights = {"square": 1.0}  # noqa: RUF012
    bad: tuple[int, ...] = BAD_NUMBERS

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        self.quarantine.expect("train", N_SAMPLES)
        return Parts(layer=nn.Linear(3, 1))

    def _read(self, sample: Numbered) -> torch.Tensor:
        if sample.number in self.bad:
            raise MediaError(f"{sample.id}: is cut.")
        return torch.randn(3, generator=generator(0, sample.number))

    def batch(self, position: int, parts: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rows, used = torch.zeros(PER_BATCH, 3), torch.zeros(PER_BATCH)
        for i in range(PER_BATCH):
            sample = Numbered((position * PER_BATCH + i) % N_SAMPLES)
            value = self.quarantine.read(sample, self._read, split="train")
            if value is not None:
                rows[i], used[i] = value, 1.0
        return [(rows, used)]

    def counts(self, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor | int]:
        return {"square": batch[1].sum()}

    def losses(
        self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], phase: str
    ) -> dict[str, torch.Tensor]:
        rows, used = batch
        out = model.get_submodule("layer")(rows)[:, 0]
        return {"square": ((out - rows.sum(1)).square() * used).sum()}

    def fill(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[int, int]:
        return int(batch[1].sum()), PER_BATCH

    def evaluate(self, model: nn.Module, split: str) -> list[Figure]:
        total = sum(float(p.double().sum()) for p in model.parameters())
        return [Figure(name="sum of weights", value=total, baseline=0.0, baseline_name="zero")]


def _lazy_run(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {"steps": 25, "log_every": 1, "save_every": 5, "bad_samples": 0.1, "workers": 0}
    return RunConfig(
        stage="text", model=sized("nano"), train=TrainConfig(**values | changes),
        optim=OptimConfig(lr=0.05, warmup_steps=1),
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop_at", [None, 2, 12])
def test_samples_found_bad_while_training_leave_their_room_empty_and_are_counted_once(
    workers: int, stop_at: int | None, tmp_path: Path
) -> None:
    """Two and a half epochs; whichever process finds them, and however often the run is stopped."""
    run = _lazy_run(workers=workers)
    straight = train(LazyStage(_lazy_run()), _lazy_run(), tmp_path / "a", device="cpu")
    if stop_at is not None:

        def stop(step: int, steps: int, row: dict[str, float]) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(LazyStage(run), run, tmp_path / "b", device="cpu", progress=stop)
    result = train(LazyStage(run), run, tmp_path / "b", device="cpu")
    a, b = _state(straight), _state(result)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert _losses(result) == _losses(straight)
    assert result.quarantined == straight.quarantined == {"train": 3}
    assert sorted(_listed(result.directory)) == [("train", f"sample {n}") for n in (17, 18, 5)]
    used = [
        json.loads(line)["fill_rate"]
        for line in (result.directory / "metrics.jsonl").read_text().splitlines()
    ]
    assert used[:5] == [1.0, 0.75, 1.0, 1.0, 0.5]


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_found_bad_while_a_stage_is_timed_are_counted_and_listed_once(
    workers: int, tmp_path: Path
) -> None:
    run, more = _lazy_run(workers=workers), _lazy_run(workers=workers, steps=30)
    own = LazyStage(run)
    found = time_stage(own, run, tmp_path / "a", seconds=0.0)
    assert own.quarantine.counts() == {"train": 3}, "whichever process found them"
    result = train(own, more, tmp_path / "a", device="cpu", built=found.built)
    straight = train(LazyStage(more), more, tmp_path / "b", device="cpu")
    a, b = _state(straight), _state(result)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert result.quarantined == straight.quarantined == {"train": 3}
    assert sorted(_listed(result.directory)) == sorted(_listed(straight.directory))
    assert len(_listed(result.directory)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_budget_exceeded_while_training_stops_and_may_be_raised_for_the_same_run(
    workers: int, tmp_path: Path
) -> None:
    """The checkpoint before is gone on with; another budget is no other run."""
    run = _lazy_run(workers=workers, bad_samples=0.05, save_every=2)
    with pytest.raises(
        BadDataError, match="3 of 40 samples of split train cannot be used, at most 5 %"
    ) as error:
        train(LazyStage(run), run, tmp_path / "a", device="cpu")
    assert "\n" not in str(error.value)
    saved = newest_complete(tmp_path / "a" / "text")
    assert saved is None or saved.name in ("step-00000002", "step-00000004")
    more = _lazy_run(workers=workers, bad_samples=0.1, save_every=2)
    result = train(LazyStage(more), more, tmp_path / "a", device="cpu")
    straight = train(LazyStage(more), more, tmp_path / "b", device="cpu")
    a, b = _state(straight), _state(result)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert not (tmp_path / "a" / "text.previous").exists() and len(_listed(result.directory)) == 3


def test_the_command_says_how_many_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Printed at the end, logged when found, one line and exit code 2 beyond the budget; also when it is reused."""
    monkeypatch.setattr(demo, "stage", LazyStage)
    where = tmp_path / "text" / NAME

    def run(share: float) -> int:
        settings = ["train.steps=12", "train.save_every=2", "train.workers=0", f"train.bad_samples={share}"]
        try:
            cli.main(["train", "--stage", "text", "--run", str(tmp_path), "--set", *settings])
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    assert run(0.05) == cli.EXIT_USER_ERROR
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith("muomni: stage text: 3 of 40 samples of split train cannot be used, at most 5 %")
    for _ in range(2):
        assert run(0.08) == 0
        shown = " ".join(capfd.readouterr().out.split())
        assert f"text 3 unusable train samples left out, listed in {where}" in shown
