"""The Talker's batches: which frames train the codebooks 1.., and recordings that start later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data.audio import stack_frames
from muomni.models.codec import Codec
from muomni.models.talker import Talker
from muomni.tokens import IGNORE_INDEX
from muomni.train.stage import part
from muomni.train.stages.talker import TalkerStage
from muomni.train.stages.utterances import SpokenBatch, collate, spread

SmallRun = Callable[..., RunConfig]


def _built(run: RunConfig, root: Path, *, share: float) -> tuple[TalkerStage, nn.Module]:
    talker = dataclasses.replace(run.model.talker, depth_share=share, dropout=0.0)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, talker=talker))
    torch.manual_seed(0)
    stage = TalkerStage(run)
    return stage, stage.build(run, root)


def _deep(batch: SpokenBatch) -> list[tuple[list[int], list[int]]]:
    """Of every frame that trains codebooks 1..: the codes it follows, and its labels."""
    kept = batch.deep_labels[:, 0] != IGNORE_INDEX
    rows = zip(batch.codes[batch.deep[kept]].tolist(), batch.deep_labels[kept].tolist(), strict=True)
    return [(codes, labels) for codes, labels in rows]


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("n", [1, 3, 8])
def test_every_frame_is_deep_once_in_as_many_draws_as_its_share_is_small(
    n: int, trained: Path, small_run: SmallRun
) -> None:
    made = _built(small_run("talker"), trained, share=1.0)[0].utterances("train")[:3]
    hits = [torch.cat([u.deep for u in spread(made, 1 / n, (i + 0.5) / n)]).long() for i in range(n)]
    assert torch.equal(torch.stack(hits).sum(0), torch.ones_like(hits[0]))
    # At even distances: no n frames in a row with none, none with two.
    assert all(hit.unfold(0, n, 1).sum(1).eq(1).all() for hit in hits)


@pytest.mark.usefixtures("small_data")
def test_deep_frames_have_their_own_codes_as_labels_and_a_fixed_room(
    trained: Path, small_run: SmallRun
) -> None:
    stage, _ = _built(small_run("talker"), trained, share=0.25)
    batches = [stage.batch(position)[0] for position in range(8)]
    assert {len(batch.deep) for batch in batches} == {len(batches[0].codes) // 4 + 1}
    for batch in batches:
        found = _deep(batch)
        assert all(labels == codes[1:] for codes, labels in found)
        assert len(found) == int(stage.counts(batch)["depth"]) // 7
        assert abs(len(found) - batch.n_frames / 4) < 1
    # Other ones each step: of a recording that comes again other frames.
    assert len({tuple(batch.deep[:4].tolist()) for batch in batches}) > 1


@pytest.mark.usefixtures("small_data")
def test_the_pieces_of_a_batch_train_the_frames_that_the_whole_does(
    trained: Path, small_run: SmallRun
) -> None:
    stage, model = _built(small_run("talker"), trained, share=1 / 3)
    model.eval()
    for position in range(3):
        (whole,), pieces = stage.batch(position), stage.batch(position, 2)
        assert _deep(whole) == [frame for piece in pieces for frame in _deep(piece)]
        assert len({len(piece.deep) for piece in pieces}) == 1
        sums = stage.losses(model, whole, "main")
        for key, value in sums.items():
            parts = torch.stack([stage.losses(model, piece, "main")[key] for piece in pieces]).sum()
            torch.testing.assert_close(parts, value, rtol=2e-4, atol=1e-3)


@pytest.mark.usefixtures("small_data")
@torch.no_grad()
def test_the_draws_losses_add_up_to_that_of_all_frames(trained: Path, small_run: SmallRun) -> None:
    """Oracle: every frame of each utterance through Talker.forward."""
    stage, model = _built(small_run("talker"), trained, share=0.25)
    model.eval()
    talker, made = part(model, "talker", Talker), stage.utterances("train")[:3]
    expected = torch.zeros(8)
    for u in made:
        places = torch.cat([u.places, torch.tensor([len(u.text.characters)])])
        condition = talker.script(*u.text.at(places)) + talker.voice(u.speaker)
        out = talker(u.codes[None], condition[None])
        expected += talker.codes.cross_entropy(out["queries"], u.codes.T[None])[0]
    total = torch.zeros(())
    for i in range(4):
        batch = collate(
            spread(made, 0.25, i / 4), delay=1, n_steps=200, n_items=4, longest=130, depth_share=0.25
        )
        found = stage.losses(model, batch, "main")
        torch.testing.assert_close(found["first"], expected[0], rtol=1e-4, atol=1e-3)
        total += found["depth"]
    torch.testing.assert_close(total, expected[1:].sum(), rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("small_data")
@torch.no_grad()
def test_a_recording_that_starts_later_has_the_codes_of_one(trained: Path, small_run: SmallRun) -> None:
    """Oracle: the codec's codes of the log-mel with its first frame repeated four times, alone."""
    stage, model = _built(small_run("talker"), trained, share=1.0)
    made, draw = stage.utterances("train"), torch.Generator().manual_seed(0)
    rows = [stage.varied(list(range(len(made))), draw) for _ in range(40)]
    codec, late = part(model, "codec", Codec), 0
    for i, utterance in enumerate(made):
        mel = torch.cat([utterance.log_mel[:1]] * 5 + [utterance.log_mel[1:]])
        codes = codec.encode(stack_frames(mel, stage.config.mel, factor=8)[None])[0]
        assert not torch.equal(codes[:, :-1], utterance.codes[:, : codes.shape[1] - 1])
        for row in rows:
            same, later = (torch.equal(row[i].codes, own) for own in (utterance.codes, codes))
            assert same != later
            # The place at a frame's middle, four log-mel frames on, is that of the recording at its start.
            times = (torch.arange(codes.shape[1]) * 8).clamp(max=int(utterance.begins[-1]))
            expected = torch.searchsorted(utterance.begins, times, right=True) - 1
            assert same or (row[i].places - expected.clamp(min=0)).abs().float().mean() < 0.5
            late += later
    # Speaking starts as the recordings do: half of them stay as they are.
    assert abs(late / (40 * len(made)) - 0.5) < 0.1
