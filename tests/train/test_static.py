"""Batches of one shape for every stage, filled, and losses that the padding does not enter."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni.config import SIZES, STAGES, RunConfig
from muomni.data.batch import to_device, traced
from muomni.models.codec import Codec
from muomni.models.talker import Talker
from muomni.recipes import recipe
from muomni.tokens import IGNORE_INDEX
from muomni.train.losses import contrastive_loss, ctc_loss
from muomni.train.stage import part
from muomni.train.stages import stage as make_stage
from muomni.train.stages.audio import SPEEDS, AudioStage
from muomni.train.stages.codec import CodecStage
from muomni.train.stages.ctc import packed_ctc_loss
from muomni.train.stages.talker import TalkerStage
from muomni.train.stages.text import TextStage
from muomni.train.stages.utterances import collate
from muomni.train.stages.vision import collate as collate_pairs
from muomni.train.stages.vision import paired_loss

SmallRun = Callable[..., RunConfig]
N_BATCHES = 10


def _build(run: RunConfig, root: Path) -> tuple[Any, torch.nn.Module]:
    torch.manual_seed(0)
    stage = make_stage(run)
    model = stage.build(run, root)
    stage.set_mode(model)
    return stage, model


def _signature(batch: Any) -> dict[str, object]:
    """All a compiled function could specialise on."""
    return {
        key: (value.shape, value.dtype, value.stride(), value.device, value.is_contiguous())
        if isinstance(value, torch.Tensor)
        else value
        for key, value in vars(traced(batch)).items()
    }


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("name", STAGES)
def test_ten_training_batches_differ_in_values_alone(name: str, trained: Path, small_run: SmallRun) -> None:
    stage, _ = _build(small_run(name), trained)
    batches = [stage.batch(i)[0] for i in range(N_BATCHES)]
    first, *others = map(_signature, batches)
    assert any(isinstance(value, tuple) for value in first.values())
    for other in others:
        assert other == first
    # They are not one batch ten times, and the loop's way to the device keeps what it must.
    assert any(
        not torch.equal(value, getattr(batches[1], key))
        for key, value in vars(batches[0]).items()
        if isinstance(value, torch.Tensor)
    )
    assert _signature(to_device(batches[0], "cpu")) == first


@pytest.mark.usefixtures("all_data")
@pytest.mark.parametrize("size", SIZES)
def test_text_rows_are_filled_over_97_percent(size: str, tmp_path: Path) -> None:
    run = recipe(size, "text")
    stage = make_stage(run)
    assert isinstance(stage, TextStage)
    stage.build(run, tmp_path)
    _, order = stage._order("train")
    assert len(order.lengths) > 3_000
    for epoch in range(2):
        rows = order.epoch(epoch)
        assert order.lengths[:, 0].sum() / (len(rows) * run.train.batch_tokens) > 0.97


@pytest.mark.usefixtures("all_data")
@pytest.mark.parametrize("size", SIZES)
def test_audio_batches_are_filled_over_92_percent(size: str, tmp_path: Path) -> None:
    """Over the first three epochs: the embedded set is few batches of the larger sizes."""
    run = recipe(size, "audio")
    stage = make_stage(run)
    assert isinstance(stage, AudioStage)
    stage.build(run, tmp_path)
    _, order = stage.order("train")
    assert len(order.lengths) > 1_400
    n_rows = sum(len(order.epoch(epoch)) for epoch in range(3))
    assert 3 * order.lengths[:, 0].sum() / (n_rows * run.train.batch_tokens) > 0.92


@pytest.mark.usefixtures("small_data")
def test_an_epoch_of_spectrograms_is_filled_as_its_plan_says(trained: Path, small_run: SmallRun) -> None:
    stage, _ = _build(small_run("audio"), trained)
    n = len(stage.items("train")) * len(SPEEDS)
    seen = used = room = 0
    for batch in (stage.batch(i)[0] for i in itertools.count()):
        seen, (own, all_) = seen + len(batch.texts), stage.fill(batch)
        used, room = used + own, room + all_
        if seen >= n:
            break
    assert seen == n and used == sum(stage.fill(stage.batch(i)[0])[0] for i in range(room // all_))


def test_packed_ctc_is_the_padded_one() -> None:
    """Oracle: torch's own CTC over padded clips, with its own backward."""
    draw = torch.Generator().manual_seed(0)
    lengths, spelled, size = [9, 17, 4, 12], [3, 8, 1, 0], 29
    logits = torch.randn(60, size, generator=draw, requires_grad=True)
    targets = torch.randint(1, size, (40,), generator=draw)
    clips = logits[: sum(lengths)].split(lengths)
    own = targets[: sum(spelled)].split(spelled)
    expected = ctc_loss(
        torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True),
        torch.nn.utils.rnn.pad_sequence(list(own), batch_first=True),
        input_lengths=torch.tensor(lengths),
        target_lengths=torch.tensor(spelled),
    )
    (d_expected,) = torch.autograd.grad(3.0 * expected, logits)
    found = packed_ctc_loss(
        logits, targets, input_lengths=torch.tensor([*lengths, 0, 0]),
        target_lengths=torch.tensor([*spelled, 0, 0]),
    )  # fmt: skip
    (d_found,) = torch.autograd.grad(3.0 * found, logits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(d_found, d_expected, rtol=1e-6, atol=1e-6)
    assert not d_found[sum(lengths) :].any()


def test_packed_ctc_is_a_sound_operator() -> None:
    from muomni.train.stages.ctc import _ctc

    log_probs = torch.randn(20, 5).log_softmax(-1).requires_grad_()
    arguments = (log_probs, torch.tensor([1, 2, 3, 0]), torch.tensor([12, 6, 0]), torch.tensor([2, 1, 0]))
    torch.library.opcheck(
        _ctc, arguments, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static")
    )
    nothing, gradient = _ctc(
        log_probs, arguments[1], torch.zeros(3, dtype=torch.int64), torch.zeros(3).long()
    )
    assert nothing == 0 and not gradient.any()


@pytest.mark.parametrize("n_pairs", [1, 5, 8])
def test_room_for_pairs_that_is_empty_changes_no_contrast(n_pairs: int) -> None:
    a, b = torch.randn(2, 8, 6).unbind()
    a.requires_grad_(), b.requires_grad_()
    scale = torch.tensor(7.0, requires_grad=True)
    expected = contrastive_loss(a[:n_pairs], b[:n_pairs], scale=scale)
    found = paired_loss(a, b, torch.arange(8) < n_pairs, scale=scale)
    torch.testing.assert_close(found, expected)
    for d_found, d_expected in zip(
        torch.autograd.grad(found, (a, b, scale)), torch.autograd.grad(expected, (a, b, scale)), strict=True
    ):
        torch.testing.assert_close(d_found, d_expected, atol=1e-5, rtol=1e-5)


def test_what_fits_a_picture_too_is_no_distractor_of_it() -> None:
    """Oracle: the contrast of the pictures and captions there are without the one that fits two."""
    a, b = torch.randn(2, 4, 6).unbind()
    also, scale = torch.zeros(4, 4, dtype=torch.bool), torch.tensor(3.0)
    also[0, 1:], also[1:, 0] = True, True
    found = paired_loss(a, b, torch.ones(4, dtype=torch.bool), scale=scale, also=also)
    # Item 0 has no distractor left: its loss is 0.
    torch.testing.assert_close(found, contrastive_loss(a[1:], b[1:], scale=scale))


@pytest.mark.usefixtures("small_data")
def test_an_epochs_last_pairs_lie_in_a_batch_of_the_same_shape(trained: Path, small_run: SmallRun) -> None:
    stage, model = _build(small_run("vision", batch_items=10), trained)
    whole, _, last = (stage.batch(i)[0] for i in range(3))
    assert (whole.n_pairs, last.n_pairs) == (10, 4)
    assert _signature(whole) == _signature(last)
    tight = collate_pairs(
        last.images[:4],
        [last.input_ids[a:b].tolist() for a, b in itertools.pairwise(last.cu_seqlens[:5].tolist())],
        n_items=4,
        also=last.also[:4, :4],
        seen=last.seen[:4],
    )
    torch.testing.assert_close(stage.losses(model, last, "main"), stage.losses(model, tight, "main"))


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("n_active", [1, 3, 8])
def test_codec_losses_are_those_of_its_forward(n_active: int, trained: Path, small_run: SmallRun) -> None:
    """Oracle: Codec.forward with the number of codebooks as a Python number."""
    stage, model = _build(small_run("codec", augment=False), trained)
    assert isinstance(stage, CodecStage)
    codec = part(model.double(), "codec", Codec)
    batch = stage.batch(0)[0]
    batch = dataclasses.replace(batch, frames=batch.frames.double(), n_active=torch.tensor(n_active))
    out = codec(batch.frames, n_active=n_active)
    difference = out.frames - batch.frames
    # Patches of the normalised log-mel at 100 Hz, as a picture of frames and bands.
    picture = difference.unflatten(2, (8, -1)).flatten(1, 2)
    patches = [
        picture.unflatten(2, (-1, n)).unflatten(1, (-1, n)).mean((2, 4)).abs().sum() for n in (2, 4, 8)
    ]
    expected = {
        "l1": difference.abs().sum(), "l2": difference.square().sum(), "scales": sum(patches),
        "commitment": out.commitment,
    }  # fmt: skip
    torch.stack(list(expected.values())).sum().backward()
    d_expected, kept = _gradients(model), codec.quantizer._pending.pop()
    found = stage.losses(model, batch, "main")
    torch.stack(list(found.values())).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(_gradients(model), d_expected)
    torch.testing.assert_close(codec.quantizer._pending, [kept])


@pytest.mark.usefixtures("small_data")
def test_statistics_that_were_gathered_move_the_codebooks_alike(trained: Path, small_run: SmallRun) -> None:
    books = []
    for gathers in (False, True):
        stage, model = _build(small_run("codec"), trained)
        assert isinstance(stage, CodecStage)
        quantizer = part(model, "codec", Codec).quantizer
        for batch in (stage.batch(i)[0] for i in range(3)):
            stage.losses(model, batch, "main")
            if gathers:
                stage.gather(model)
                assert not quantizer._pending
        stage.after_step(model)
        assert int(quantizer.n_commits) == 1
        books.append(quantizer.codebooks.clone())
    assert torch.equal(*books)


@pytest.mark.usefixtures("small_data")
def test_packed_talker_is_the_padded_one(trained: Path, small_run: SmallRun) -> None:
    """Oracle: Talker.forward, one utterance at a time."""
    stage, model = _build(small_run("talker"), trained)
    assert isinstance(stage, TalkerStage)
    model.eval()
    talker, made = part(model, "talker", Talker), stage.utterances("train")[:4]
    batch = collate(made, delay=1, n_steps=250, n_items=6, longest=130)
    out = stage.forward(model, batch)
    for i, utterance in enumerate(made):
        places = torch.cat([utterance.places, torch.tensor([len(utterance.text.characters)])])
        condition = talker.script(*utterance.text.at(places)) + talker.voice(utterance.speaker)
        alone = talker(utterance.codes[None], condition[None])
        place = slice(int(batch.cu_seqlens[i]), int(batch.cu_seqlens[i + 1]) - 1)
        own = (
            (batch.deep >= place.start)
            & (batch.deep < place.stop)
            & (batch.deep_labels[:, 0] != IGNORE_INDEX)
        )
        queries = torch.cat([out["first"][place], out["depth"][own]], dim=1)
        torch.testing.assert_close(queries, alone["queries"][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out["hidden"][place], alone["hidden"][0], rtol=1e-4, atol=1e-5)
        assert batch.advance[place].tolist() == [*utterance.places.diff().tolist(), 1]
        assert batch.advance[place.stop] == IGNORE_INDEX


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("name", ["text", "audio", "omni", "talker"])
def test_more_room_changes_no_loss_and_no_gradient(name: str, trained: Path, small_run: SmallRun) -> None:
    stage, model = _build(small_run(name, augment=False), trained)
    model.eval()
    tight, wide = _with_room(stage)
    found = []
    for batch in (tight, wide):
        sums = {k: v for k, v in stage.losses(model, batch, "main").items() if k != "balance"}
        torch.stack(list(sums.values())).sum().backward()
        counts = {k: int(v) for k, v in stage.counts(batch).items() if k != "balance"}
        found.append((sums, _gradients(model), counts))
    assert len(next(iter(vars(tight).values()))) < len(next(iter(vars(wide).values())))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def _with_room(stage: Any) -> list[Any]:
    """The same items in a small and a large buffer."""
    if stage.name == "text":
        from muomni.data.batch import pack

        items, longest = stage.documents("train")[:3], stage.config.max_seq_len
        return [pack(items, n_tokens=n, n_docs=6, max_seq_len=longest) for n in (1_536, 2_000)]
    if stage.name == "audio":
        items = stage.items("train")[:3]
        mels, texts = [stage.mel(item, 1) for item in items], [item.text for item in items]
        return [stage.collate(mels, texts, capacity=n) for n in (128, 512)]
    if stage.name == "talker":
        return [
            collate(stage.utterances("train")[:3], delay=1, n_steps=n, n_items=6, longest=130)
            for n in (128, 300)
        ]
    first = {e.task: e for e in reversed(stage.examples("train"))}
    chosen = [first[task] for task in ("name spoken", "transcribe", "say")]
    found, made = stage.documents("train", chosen), []
    for n in (512, 1_024):
        stage.run = dataclasses.replace(stage.run, train=dataclasses.replace(stage.run.train, batch_tokens=n))
        made.append(stage.collate("train", chosen, found))
    return made
