"""Samples that cannot be used: left out with id and reason, counted once, within a budget, never silently."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from muomni import files
from muomni.data import embedded, shards
from muomni.data.audio import encode_ctc
from muomni.data.items import Conversation, Item, Kind, PictureItem, Source, SpeechItem, Split
from muomni.data.media import MAX_TEXT_BYTES, MediaError, read_audio, read_text
from muomni.data.quarantine import NAME, BadDataError, Quarantine
from muomni.data.usable import Usable


@dataclass(frozen=True)
class Thing:
    """A sample that is what its number says; a negative one is bad."""

    number: int

    @property
    def id(self) -> str:
        return f"thing {self.number}"


def _read(thing: Thing) -> int:
    if thing.number < 0:
        raise MediaError(f"{thing.number}: is negative.")
    return thing.number * 10


def _lines(directory: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (directory / NAME).read_text().splitlines()]


def test_bad_samples_are_left_out_in_order_listed_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quarantine = Quarantine("audio", share=0.5)
    kept = quarantine.keep([Thing(n) for n in (3, -1, 2, -2, 1)], _read, split="train")
    assert kept == [(Thing(3), 30), (Thing(2), 20), (Thing(1), 10)]
    with caplog.at_level(logging.WARNING):
        quarantine.open(tmp_path, resume=False)
    assert _lines(tmp_path) == [
        {"id": "thing -1", "reason": "-1: is negative.", "split": "train"},
        {"id": "thing -2", "reason": "-2: is negative.", "split": "train"},
    ]
    assert quarantine.counts() == {"train": 2}
    assert [r.getMessage() for r in caplog.records] == [
        "stage audio: 2 of 5 samples of split train cannot be used and are left out, new ones: thing -1 (-1: is "
        f"negative); thing -2 (-2: is negative). All are in {tmp_path / NAME}."
    ]


def test_nothing_bad_leaves_no_list_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quarantine = Quarantine("audio", share=0.0)
    assert len(quarantine.keep([Thing(1)], _read, split="train")) == 1
    quarantine.open(tmp_path, resume=False)
    assert quarantine.counts() == {} and not caplog.records and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("n_bad", "stops"), [(1, False), (2, True)])
def test_more_than_the_budget_stops_with_one_line_after_the_list_is_written(
    n_bad: int, stops: bool, tmp_path: Path
) -> None:
    """1 % of the samples of each split: one of 100 is allowed, and the other split's samples do not help."""
    quarantine = Quarantine("audio", share=0.01)
    quarantine.keep([Thing(n) for n in range(-n_bad, 100 - n_bad)], _read, split="validation")
    quarantine.keep([Thing(n) for n in range(1_000)], _read, split="train")
    if not stops:
        quarantine.open(tmp_path, resume=False)
        return
    with pytest.raises(BadDataError) as error:
        quarantine.open(tmp_path, resume=False)
    assert str(error.value) == (
        "stage audio: 2 of 100 samples of split validation cannot be used, at most 1 % may be: thing -2 (-2: is "
        f"negative); thing -1 (-1: is negative). All are in {tmp_path / NAME}; mend or remove them, or raise "
        "train.bad_samples."
    )
    assert len(_lines(tmp_path)) == 2


def test_a_run_that_goes_on_counts_nothing_twice_and_a_new_one_begins_anew(tmp_path: Path) -> None:
    for resume in (False, True, True):
        quarantine = Quarantine("audio", share=0.5)
        quarantine.keep([Thing(n) for n in (-1, 1, 2)], _read, split="train")
        quarantine.open(tmp_path, resume=resume)
        assert quarantine.counts() == {"train": 1} and len(_lines(tmp_path)) == 1
    other = Quarantine("audio", share=0.5)
    other.keep([Thing(n) for n in (-5, 1)], _read, split="train")
    other.open(tmp_path, resume=False)
    assert [line["id"] for line in _lines(tmp_path)] == ["thing -5"]


def test_samples_read_while_training_are_none_once_listed_and_judged(tmp_path: Path) -> None:
    quarantine = Quarantine("audio", share=0.02)
    quarantine.expect("train", 100)
    quarantine.open(tmp_path, resume=False)
    asked: list[int] = []

    def read(thing: Thing) -> int:
        asked.append(thing.number)
        return _read(thing)

    assert quarantine.read(Thing(4), read, split="train") == 40
    for _ in range(3):
        assert quarantine.read(Thing(-1), read, split="train") is None
    assert asked == [4, -1] and quarantine.counts() == {"train": 1}
    # Another process of the same run: it knows what is listed, and what it finds the first one counts.
    other = Quarantine("audio", share=0.02)
    other.expect("train", 100)
    other.open(tmp_path, resume=True)
    assert other.read(Thing(-1), read, split="train") is None and asked == [4, -1]
    assert other.read(Thing(-2), read, split="train") is None
    assert quarantine.counts() == {"train": 2}
    with pytest.raises(BadDataError, match=r"3 of 100 samples of split train cannot be used, at most 2 %"):
        quarantine.read(Thing(-3), read, split="train")
    assert [line["id"] for line in _lines(tmp_path)] == ["thing -1", "thing -2", "thing -3"]


def test_a_line_cut_by_a_full_disk_is_ended_and_its_sample_found_again(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(
        '{"id": "thing -1", "reason": "a", "split": "train"}\n{"id": "thing -2", "rea'
    )
    quarantine = Quarantine("audio", share=0.9)
    quarantine.keep([Thing(n) for n in (-1, -2, 1, 2)], _read, split="train")
    quarantine.open(tmp_path, resume=True)
    last = (tmp_path / NAME).read_text().splitlines()[-1]
    assert json.loads(last) == {"id": "thing -2", "reason": "-2: is negative.", "split": "train"}
    assert quarantine.counts() == {"train": 2}


def test_an_error_of_ours_is_not_taken_for_a_bad_sample() -> None:
    def broken(thing: Thing) -> int:
        raise ValueError("a mistake in the code")

    with pytest.raises(ValueError, match="a mistake"):
        Quarantine("audio", share=0.9).keep([Thing(1)], broken, split="train")


def _wav(samples: np.ndarray, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format=kind, subtype=subtype)
    return buffer.getvalue()


def _png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


TONE = (0.5 * np.sin(np.arange(8_000) / 10)).astype(np.float32)
NAN = np.where(np.arange(8_000) == 4_000, np.nan, TONE).astype(np.float32)
CLIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated wav": (lambda: _wav(TONE)[:9_000], "is cut, 9000 bytes of 16044"),
    "truncated aiff": (lambda: _wav(TONE, "AIFF")[:9_000], "is cut"),
    "truncated flac": (lambda: _wav(TONE, "FLAC")[:2_000], "not a readable recording"),
    "truncated ogg": (lambda: _wav(np.tile(TONE, 40), "OGG")[:30_000], "8000"),
    "another's length": (lambda: _wav(TONE[:-1]), "7999 samples, its record says 8000"),
    "NaN audio": (lambda: _wav(NAN, subtype="FLOAT"), "not finite"),
    "zero length": (lambda: _wav(TONE[:0]), "0 seconds"),
    "no bytes": (lambda: b"", "is empty"),
    "too long": (lambda: _wav(np.zeros(17 * 2**20, np.int16), "FLAC"), "64 MiB"),
    "a picture": (lambda: _png(9, 9), "not a readable recording"),
}
PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "bad image": (lambda: b"\x89PNG\r\n\x1a\nbroken", "is"),
    "truncated image": (lambda: _png(128, 128)[:50], "is cut, 50 bytes"),
    "zero length": (lambda: b"", "is empty"),
    "too large": (lambda: _png(20_000, 20_000), "megapixels"),
    "another size": (lambda: _png(64, 128), "64 x 128 pixels; expected 128 x 128"),
    "a recording": (lambda: _wav(TONE), "not a picture"),
}
TEXTS: dict[str, tuple[str, str]] = {
    "bad UTF-8": (b"caf\xe9".decode("utf-8", "surrogateescape"), "is not UTF-8 .* at 3"),
    "empty text": ("", "is empty"),
    "white space": (" \n\t", "is empty"),
    "too long": ("a" * (MAX_TEXT_BYTES + 1), "16.0 MiB of text, at most 16"),
}


@dataclass
class Items(Source):
    """A source with one good item of each kind in every split, and bad ones."""

    speech_: list[SpeechItem] = field(default_factory=list)
    pictures_: list[PictureItem] = field(default_factory=list)
    conversations_: list[Conversation] = field(default_factory=list)

    def items(self, kind: Kind, split: Split) -> list[Item]:
        return [i for i in (*self.speech_, *self.pictures_, *self.conversations_) if i.of == kind]

    def file(self, item: Item) -> bytes:
        raise AssertionError("texts alone are read")


def _clip(name: str, text: str = "a word") -> SpeechItem:
    return SpeechItem(
        id=name, text=text, raw_text=text, speaker="s", synthetic=False, split="train", n_samples=8_000
    )


def _picture(name: str, label: str = "tree", tag: str = "green") -> PictureItem:
    return PictureItem(id=name, label=label, tags=(tag,), group="plants", split="train")


@pytest.mark.parametrize("name", CLIPS)
def test_a_bad_clip_is_left_out_with_its_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, reason = CLIPS[name]
    payload = {"good": _wav(TONE), "bad": made()}
    monkeypatch.setattr(embedded.SET, "file", lambda item: payload[item.id])
    with pytest.raises(MediaError, match=reason):
        embedded.SET.waveform(_clip("bad"))
    quarantine = Quarantine("audio", share=0.5)
    kept = quarantine.keep([_clip("bad"), _clip("good")], embedded.SET.waveform, split="train")
    assert [item.id for item, _ in kept] == ["good"] and quarantine.counts() == {"train": 1}
    np.testing.assert_allclose(kept[0][1], TONE, atol=1e-4)


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_picture_is_left_out_with_its_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, reason = PICTURES[name]
    payload = {"good": _png(128, 128), "bad": made()}
    monkeypatch.setattr(embedded.SET, "file", lambda item: payload[item.id])
    with pytest.raises(MediaError, match=reason):
        embedded.SET.picture(_picture("bad"))
    quarantine = Quarantine("vision", share=0.5)
    kept = quarantine.keep([_picture("good"), _picture("bad")], embedded.SET.picture, split="train")
    assert [item.id for item, _ in kept] == ["good"] and quarantine.counts() == {"train": 1}


@pytest.mark.parametrize("name", TEXTS)
def test_a_bad_text_is_left_out_wherever_it_stands(name: str, tmp_path: Path) -> None:
    text, reason = TEXTS[name]
    with pytest.raises(MediaError, match=reason):
        read_text(text, name="x")
    talk = Conversation
    source = Items(
        speech_=[_clip("clip"), _clip("bad clip", text)],
        pictures_=[_picture("bad label", text), _picture("picture"), _picture("bad tag", tag=text)],
        conversations_=[
            talk(id="bad talk", split="train", turns=("yes", text)),
            talk(id="talk", split="train", turns=("yes", "no")),
        ],
    )  # fmt: skip
    quarantine = Quarantine("text", share=0.9)
    usable = Usable(quarantine, source)
    assert [i.id for i in usable.all_items("train")] == ["clip", "picture", "talk"]
    quarantine.open(tmp_path, resume=False)
    assert quarantine.counts() == {"train": 4, "validation": 4}
    assert {line["id"] for line in _lines(tmp_path)} == {"bad clip", "bad label", "bad tag", "bad talk"}


def test_a_conversation_of_nobody_is_empty() -> None:
    source = Items(conversations_=[Conversation(id="x", split="train", turns=())])
    quarantine = Quarantine("text", share=0.9)
    Usable(quarantine, source)
    assert quarantine.counts() == {"train": 1, "validation": 1}


def test_texts_are_kept_as_they_are() -> None:
    for text in ("a", " leading", "Ünïcödé 🙂", "\ufffd", "a\tb\r\n\x0c"):
        assert read_text(text, name="x") == read_text(text.encode(), name="x") == text
    with pytest.raises(MediaError, match=r"^x: is not UTF-8 \(invalid start byte at 1\)\.$"):
        read_text(b"a\xff", name="x")


def test_a_transcript_that_cannot_be_spelled_is_a_bad_sample() -> None:
    with pytest.raises(MediaError, match=r"\['1'\] cannot be spelled"):
        encode_ctc("press 1")


def test_a_byte_that_is_no_utf8_spoils_its_own_record_alone(tmp_path: Path) -> None:
    rows = (
        b'{"id": "a", "text": "good"}\n{"id": "b", "text": "caf\xe9"}\n{"id": "c", "text": "also \xc3\xa9"}\n'
    )
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        entry = tarfile.TarInfo("items.jsonl")
        entry.size = len(rows)
        tar.addfile(entry, io.BytesIO(rows))
    records = shards.TarShard(tmp_path / "x.tar").records
    assert read_text(records[0]["text"], name="a") == "good"
    assert read_text(records[2]["text"], name="c") == "also é"
    with pytest.raises(MediaError, match="b: is not UTF-8"):
        read_text(records[1]["text"], name="b")


def test_wavs_whose_writer_did_not_know_their_length_are_read() -> None:
    """A pipe's header, and a missing byte of padding."""
    whole = bytearray(_wav(TONE))
    for stated in (0xFFFFFFFF, 0x7FFFFFFF + 8, 0, len(whole) - 8 + 1):
        whole[4:8] = stated.to_bytes(4, "little")
        assert len(read_audio(bytes(whole))) == 8_000


def test_a_small_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.replace(path, "old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left") as error:
        files.replace(path, "new")
    assert error.value.filename == str(path) and path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
