"""benchmarks.peer_encoders: peers learn, both sides are measured as the evaluation measures, no library is one line."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import peer_encoders, peer_figures, peer_models
from benchmarks.peer_encoders import Comparison
from benchmarks.peer_models import ClipPeer, CtcPeer
from muomni.config import OptimConfig
from muomni.data import embedded
from muomni.data.items import Item, Kind, Split
from muomni.evaluate.asr import evaluate_asr
from muomni.evaluate.family import HeldOut
from muomni.evaluate.retrieval import evaluate_retrieval
from muomni.infer.session import load
from muomni.models.omni import OmniModel
from muomni.models.vision import ContrastModel
from muomni.tokens import BOS

ITEMS = {"speech": 6, "pictures": 24}
"""Items of a split, the shortest clips."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_run: Callable[..., OmniModel]) -> Iterator[Path]:
    """An untrained run whose context holds the few short clips of the embedded set that there are while it is."""
    root = tmp_path_factory.mktemp("peers")
    write_run(root, max_seq_len=512)
    for stage in ("text", "audio", "vision"):
        shutil.copy(root / stage / "checkpoints" / "step-00000001" / "run.json", root / stage / "run.json")
    every = embedded.SET.items
    patch = pytest.MonkeyPatch()

    def few(kind: Kind, split: Split) -> list[Item]:
        items = every(kind, split)
        if kind == "speech":
            items = sorted(items, key=lambda item: (getattr(item, "n_samples"), item.id))  # noqa: B009
        return items[: ITEMS.get(kind, 0)]

    patch.setattr(embedded.SET, "items", few)
    yield root
    patch.undo()


@pytest.fixture
def transformers() -> None:
    """Skips where the peers' library is not installed."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'muomni[bench]'")


def _comparison(root: Path, kind: str, folder: Path) -> Comparison:
    return Comparison(root, kind, data=None, folder=folder)


class Repeated:
    """A peer that gets one batch over and over."""

    def __init__(self, peer: CtcPeer | ClipPeer) -> None:
        self.peer, self.model, self.batch = peer, peer.model, next(peer.batches())

    def batches(self) -> Iterator[Any]:
        return itertools.repeat(self.batch)

    def loss(self, batch: Any) -> torch.Tensor:
        return self.peer.loss(batch)

    def after_step(self) -> None:
        self.peer.after_step()


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize(("kind", "most"), [("ctc", 0.8), ("clip", 0.5)])
def test_loss_falls_on_a_repeated_batch(root: Path, tmp_path: Path, kind: str, most: float) -> None:
    peer = Repeated(_comparison(root, kind, tmp_path).peer())
    # A step takes half a second by this clock, which goes on whenever it is read.
    clock = itertools.count(0.0, 0.5).__next__
    trained = peer_encoders.train(peer, OptimConfig(), lr=3e-3, seconds=40.0, seed=0, clock=clock)
    assert (trained.steps, trained.cpu_seconds, len(trained.losses)) == (80, 40.0, peer_encoders.TOLD)
    assert np.isfinite(trained.losses).all()
    assert trained.losses[-1] < most * trained.losses[0]


def test_a_perfect_decoder_makes_no_errors_and_a_silent_one_all(root: Path, tmp_path: Path) -> None:
    stage, _ = _comparison(root, "ctc", tmp_path).ours()
    items = peer_figures.speech_items(stage, "test", 4)
    truth = iter([item.text for item in items])
    said = peer_figures.transcripts(stage, items, [lambda mel: next(truth), lambda mel: ""])
    rows = peer_figures.speech_figures([item.text for item in items], peer=said[0], ours=said[1], seed=0)
    assert [(row["peer"]["value"], row["ours"]["value"]) for row in rows] == [(0.0, 1.0), (0.0, 1.0)]
    assert all(row["peer_less_ours_95"] == [-1.0, -1.0] for row in rows)


def test_a_perfect_space_finds_every_caption() -> None:
    eye = torch.eye(70)
    rows = peer_figures.retrieval_figures(peer=(eye, eye), ours=(eye, -eye), seed=0)
    assert [row["peer"]["value"] for row in rows] == [1.0] * 4
    assert [row["ours"]["value"] for row in rows] == [0.0] * 4


def test_our_side_is_what_the_evaluation_says(root: Path, tmp_path: Path) -> None:
    held = HeldOut(session=load(root), source=embedded.SET, n=4, root=root)
    expected = {
        f.name: f.value for family in (evaluate_asr, evaluate_retrieval) for f in family(held).figures
    }
    stage, model = _comparison(root, "ctc", tmp_path).trained()
    items = peer_figures.speech_items(stage, "test", 4)
    (said,) = peer_figures.transcripts(stage, items, [peer_figures.our_spelling(stage, model)])
    row = peer_figures.speech_figures([item.text for item in items], peer=said, ours=said, seed=0)[0]
    assert row["ours"]["value"] == pytest.approx(expected["asr.char_error_rate"])
    stage, model = _comparison(root, "clip", tmp_path).trained()
    assert isinstance(model, ContrastModel)
    sides = peer_figures.our_sides(stage, model, peer_figures.picture_items(stage, "test"))
    row = peer_figures.retrieval_figures(peer=sides, ours=sides, seed=0)[1]
    assert row["ours"]["value"] == pytest.approx(expected["retrieval.picture_to_caption.at_5"])


def test_buckets_hold_every_clip_once_and_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(8, 128, 2_000).tolist()
    rows = peer_models.bucketed(lengths, capacity=320, n_items=32, seed=0, epoch=0)
    assert sorted(i for row in rows for i in row) == list(range(2_000))
    assert all(len(row) <= 32 and sum(lengths[i] for i in row) <= 320 for row in rows)
    padded = sum(len(row) * max(lengths[i] for i in row) for row in rows)
    assert padded < 1.15 * sum(lengths)
    assert rows != peer_models.bucketed(lengths, capacity=320, n_items=32, seed=0, epoch=1)


@pytest.mark.usefixtures("transformers")
def test_a_caption_of_the_peer_does_not_depend_on_its_neighbours(root: Path, tmp_path: Path) -> None:
    peer = _comparison(root, "clip", tmp_path).peer()
    assert isinstance(peer, ClipPeer)
    items = peer_figures.picture_items(peer.stage, "test")
    peer.model.eval()
    together = peer.embed(items)[1]
    alone = torch.cat([peer.embed([item])[1] for item in items])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("transformers")
def test_the_peer_reads_a_caption_to_its_end(root: Path, tmp_path: Path) -> None:
    peer = _comparison(root, "clip", tmp_path).peer()
    assert isinstance(peer, ClipPeer)
    peer.model.eval()
    # The largest id comes before the token that differs: it is not where the caption ends.
    ids = peer.collate([[BOS, 300, 20], [BOS, 300, 21]])
    pictures = torch.zeros(2, 3, 32, 32)
    with torch.inference_mode():
        first, second = peer.model(pixel_values=pictures, input_ids=ids).text_embeds
    assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize("kind", ["ctc", "clip"])
def test_the_file_says_what_was_compared(
    root: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    asked = ["--minutes", "0.01", "--trial-minutes", "0.003", "--rates", "1e-3,2e-3", "--n", "4"]
    assert peer_encoders.main([str(root), "--peer", kind, *asked, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["peer"]["class"] in ("transformers.ParakeetForCTC", "transformers.CLIPModel")
    assert (
        found["peer"]["lr"] == min(found["peer"]["rates_tried"], key=lambda one: one["validation_loss"])["lr"]
    )
    assert found["peer"]["cpu_seconds"] >= 0.6
    for key in ("commit", "processor", "command", "transformers", "torch", "data", "seed"):
        assert found[key] not in (None, "")
    assert all(row["peer"]["n"] == row["ours"]["n"] > 0 for row in found["figures"])
    assert str(out) in capsys.readouterr().out


def test_a_missing_library_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert peer_encoders.main([str(root), "--peer", "ctc", "--minutes", "1"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert "transformers" in said.err and "muomni[bench]" in said.err


@pytest.mark.usefixtures("transformers")
def test_a_run_that_does_not_say_its_time_needs_minutes(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peer_encoders.main([str(root), "--peer", "ctc"]) == 2
    assert "give --minutes" in capsys.readouterr().err
