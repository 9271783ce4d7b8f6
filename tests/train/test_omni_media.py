"""What stage omni shows and plays for an example: the right media, in order, writing never moved."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from muomni.config import RunConfig
from muomni.data import embedded
from muomni.data.audio import CTC_SYMBOLS, normalise_transcript
from muomni.data.examples import Example
from muomni.data.image import to_float
from muomni.data.items import LineItem, PictureItem
from muomni.data.text_sets import training_texts
from muomni.models.audio import AudioEncoder, CTCHead
from muomni.models.weights import load_weights, newest_complete
from muomni.tokens import HEARD, IGNORE_INDEX, IMAGE
from muomni.train.stage import Parts
from muomni.train.stages.omni import PLAIN, PLAIN_SHARE, OmniStage

SmallRun = Callable[..., RunConfig]


def _built(run: RunConfig, trained: Path) -> OmniStage:
    torch.manual_seed(0)
    stage = OmniStage(run)
    stage.build(run, trained)
    return stage


def test_pictures_of_one_example_are_shown_in_its_order_and_clips_played_in_theirs(
    trained: Path, small_run: SmallRun
) -> None:
    stage = _built(small_run("omni"), trained)
    asked = [
        Example(task="count", question="how many", answer="three", pictures=(5, 2, 9)),
        Example(task="transcribe", question="what is said", answer="one", clips=(3, 0)),
        Example(task="name spoken", question="", answer="it", pictures=(2,), clips=(1,)),
    ]
    found = stage.documents("train", asked)
    batch = stage.collate("train", asked, found)
    items, size = embedded.SET.pictures("train"), stage.config.vision.image_size
    assert batch.images is not None and batch.audio_cu_seqlens is not None
    for place, i in enumerate((5, 2, 9, 2)):
        expected = to_float(torch.from_numpy(embedded.SET.picture(items[i], side=size)))
        torch.testing.assert_close(batch.images[place], expected)
    assert (batch.images[4:] == 0).all()
    assert [int((d.input_ids == IMAGE).sum()) for d in found] == [3, 0, 1]
    lengths = [-(-embedded.SET.speech("train")[i].n_samples // 1_280) for i in (3, 0, 1)]
    assert batch.audio_cu_seqlens.diff()[:3].tolist() == lengths


@torch.no_grad()
def test_behind_a_spoken_question_stands_what_the_trained_ear_spells_of_it_alone(
    trained: Path, small_run: SmallRun
) -> None:
    """By the weights as stage audio saved them, one clip at a time; the text-only model does not get it."""
    stage = _built(small_run("omni"), trained)
    asked = [e for e in stage.examples("train") if e.task == "name spoken"][:6]
    assert {len(e.clips) for e in asked} == {1} and len({e.clips for e in asked}) > 1
    checkpoint = newest_complete(trained / "audio")
    assert checkpoint is not None
    audio, weights = stage.config.audio, load_weights(checkpoint / "weights.safetensors")
    ear = Parts(
        audio=AudioEncoder(audio, stage.config.mel.n_mels), ctc_head=CTCHead(audio.d_model, audio.ctc_expand)
    )
    ear.load_state_dict(weights)
    ear.eval()
    for example, document in zip(asked, stage.documents("train", asked), strict=True):
        frames = stage.frames("train", example.clips[0])
        bounds = torch.tensor([0, len(frames)], dtype=torch.int32)
        best = ear.ctc_head(ear.audio(frames, bounds, len(frames))).argmax(-1)
        kept = [int(s) for n, s in enumerate(best) if s and (not n or best[n - 1] != s)]
        words = "".join(CTC_SYMBOLS[s] for s in kept).split()
        ids = stage.tokenizer.encode(" ".join(words))[: len(frames)]
        assert ids
        start = int(document.audio_slots[-1]) + 1
        assert document.input_ids[start : start + len(ids) + 1].tolist() == [*ids, HEARD]
    told = [e for e in stage.examples("train") if e.task == "transcribe"][:4]
    for example, document in zip(told, stage.documents("train", told), strict=True):
        # To be written is what is heard: behind a recording of the training split stands its transcript.
        ids = stage.tokenizer.encode(normalise_transcript(example.answer))[: len(document.audio_slots)]
        start = int(document.audio_slots[-1]) + 1
        assert ids and document.input_ids[start : start + len(ids) + 1].tolist() == [*ids, HEARD]
    blind = stage.documents("train", [*asked, *told], media=False)
    assert not any((document.input_ids == HEARD).any() for document in blind)


def test_a_row_holds_no_more_pictures_and_clips_than_it_has_room_for(
    trained: Path, small_run: SmallRun
) -> None:
    """Two documents of four pictures and two clips each: neither fits beside the other."""
    stage = _built(small_run("omni"), trained)
    asked = [
        *(Example(task="count", question="q", answer="a", pictures=(0, 1, 2, 3)) for _ in range(2)),
        *(Example(task="transcribe", question="q", answer="a", clips=(0, 0, 1, 1)) for _ in range(2)),
    ]
    found = stage.documents("train", asked)
    rows = stage.order(asked, found, shuffle=False).epoch(0)
    assert [len(row) for row in rows] == [2, 2]
    for row in rows:
        stage.collate("train", [asked[i] for i in row], [found[i] for i in row])


def test_the_smallest_batch_has_room_for_one_example_of_any_task(trained: Path, small_run: SmallRun) -> None:
    stage = _built(small_run("omni", batch_items=1), trained)
    asked = [e for e in stage.examples("train") if len(e.pictures) == 4][:1]
    assert asked
    batch = stage.collate("train", asked, stage.documents("train", asked))
    assert batch.images is not None and len(batch.images) == 4


def test_an_example_with_one_unreadable_picture_is_not_shown(trained: Path, small_run: SmallRun) -> None:
    stage = _built(small_run("omni"), trained)
    example = Example(task="count", question="q", answer="a", pictures=(0, 1, 2))
    assert stage._readable(example)
    bad = stage.pictures("train")[1].id
    whole = stage.data.value
    stage.data.value = lambda item: None if item.id == bad else whole(item)  # type: ignore[method-assign]
    assert not stage._readable(example) and stage._readable(dataclasses.replace(example, pictures=(0, 2)))


def test_pictures_are_augmented_and_writing_is_not(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = OmniStage(small_run("omni"))
    pixels = torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shown = (
        PictureItem(id="a", label="dog", tags=(), group="", split="train"),
        LineItem(id="b", text="dog", split="train"),
    )
    monkeypatch.setattr(stage, "pictures", lambda split: shown)
    monkeypatch.setattr(stage, "data", SimpleNamespace(value=lambda item: pixels), raising=False)
    asked = [Example(task="read", question="q", answer="a", pictures=(1, 0))]
    document = SimpleNamespace(image_slots=[1, 2], audio_slots=[])
    draw = torch.Generator().manual_seed(1)
    (media,) = stage.media("train", asked, [document], draw)  # type: ignore[list-item]
    plain = to_float(pixels)
    assert torch.equal(media.images[0], plain) and not torch.allclose(media.images[1], plain, atol=0.1)


def test_a_share_of_what_is_trained_on_is_plain_text_as_stage_text_reads_it(
    trained: Path, small_run: SmallRun
) -> None:
    """Every token but the first is learned, nothing is shown or played, and the same seed draws the same texts."""
    stage = _built(small_run("omni"), trained)
    chosen, found, order = stage._training
    plain = [d for e, d in zip(chosen, found, strict=True) if e is PLAIN]
    known = {text for own in training_texts("train", embedded.SET).values() for text in own}
    n_plain, n_all = sum(map(len, plain)), sum(map(len, found))
    wanted = (n_all - n_plain) * PLAIN_SHARE / (1 - PLAIN_SHARE)
    # Whole texts, the last of which goes beyond.
    assert 0 <= n_plain - wanted < 2 * max(map(len, stage.tokenizer.encode_batch(list(known))))
    for document in plain[:20]:
        assert torch.equal(document.labels[1:], document.input_ids[1:])
        assert not len(document.image_slots) and not len(document.audio_slots)
        # A long text is several documents.
        written = stage.tokenizer.decode(document.input_ids[1:-1].tolist())
        assert any(written in text for text in known)
    again = _built(small_run("omni"), trained)._training[1]
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(found, again, strict=True))
    position = next(p for p in range(200) if any(chosen[i] is PLAIN for i in order.at(p)))
    (batch,) = stage.batch(position)
    assert int((batch.labels != IGNORE_INDEX).sum()) == sum(
        int((found[i].labels[1:] != IGNORE_INDEX).sum()) for i in order.at(position)
    )
