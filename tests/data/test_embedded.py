"""The embedded set is complete, attributed, small, and never leaks between splits."""

import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from muomni.data import embedded
from muomni.data.audio import CTC_SYMBOLS, ctc_feasible
from muomni.data.embedded import EmbeddedDataError, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def test_whole_set_is_at_most_12_mb_and_every_file_is_hashed() -> None:
    files = [path for path in embedded.FOLDER.iterdir() if path.name != "manifest.json"]
    assert {path.name for path in files} == set(embedded.manifest()["files"])
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert embedded.verify() == len(files)


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_changed_or_missing_file_is_named(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "embedded"
    shutil.copytree(embedded.FOLDER, folder)
    path = folder / "questions.tar"
    if damage == "remove":
        path.unlink()
    else:
        payload = bytearray(path.read_bytes())
        payload[12_345] ^= 1
        path.write_bytes(payload)
    with pytest.raises(EmbeddedDataError, match=r"questions\.tar"):
        embedded.verify(folder)


def test_every_source_has_licence_attribution_and_hash_in_the_readable_file_too() -> None:
    text = embedded.attribution()
    for source in embedded.manifest()["sources"]:
        for key in ("name", "version", "licence", "attribution", "gives"):
            assert source[key] and source[key] in text, f"{source['name']}: {key}"
        assert len(source["sha256"]) == 64
    used = " ".join(source["gives"] for source in embedded.manifest()["sources"])
    for name in ("speech.tar", "questions.tar", "pictures.tar", "text.jsonl.xz"):
        assert name in used, f"{name} has no source"


def test_no_text_concept_or_conversation_stands_in_two_splits() -> None:
    held = {
        "speech": {s: {item.text for item in embedded.SET.speech(s)} for s in SPLITS},
        "pictures": {s: {item.label for item in embedded.SET.pictures(s)} for s in SPLITS},
        "questions": {s: {item.text for item in embedded.SET.questions(s)} for s in SPLITS},
        "conversations": {s: {item.text for item in embedded.SET.conversations(s)} for s in SPLITS},
    }
    for what, by_split in held.items():
        assert all(by_split.values()), f"{what}: an empty split"
        for a, b in combinations(SPLITS, 2):
            assert not by_split[a] & by_split[b], f"{what}: {a} and {b} share items"


def test_no_picture_is_blank_and_none_is_drawn_twice_under_two_names() -> None:
    seen: dict[bytes, str] = {}
    for item in (item for split in SPLITS for item in embedded.SET.pictures(split)):
        picture = embedded.SET.picture(item)
        assert picture.min() < 240, f"{item.label} is blank"
        other = seen.setdefault(picture.tobytes(), item.label)
        assert other == item.label, f"{item.label} and {other} are the same picture"


@pytest.mark.parametrize(
    "name", ["walking", "running", "golfing", "pilot", "elf", "firefighter", "shrugging"]
)
def test_man_woman_and_person_doing_the_same_stand_in_one_split(name: str) -> None:
    drawn = {"man", "woman", "person", "facing", "right", name}
    found = [
        (item.label, split)
        for split in SPLITS
        for item in embedded.SET.pictures(split)
        if name in (words := set(item.label.replace(":", " ").split())) and words <= drawn
    ]
    assert len(found) >= 3
    assert len({split for _, split in found}) == 1, found


def test_transcripts_can_be_spelled_and_fit_50_hz() -> None:
    for split in SPLITS:
        for item in embedded.SET.speech(split):
            assert set(item.text) <= set(CTC_SYMBOLS[1:]), item
            assert ctc_feasible(item.text, -(-item.n_samples // 1280) * 4), item


def test_clips_and_pictures_decode_to_what_their_records_say() -> None:
    for item in [*embedded.SET.speech("validation")[:4], *embedded.SET.questions("test")[:3]]:
        waveform = embedded.SET.waveform(item)
        assert waveform.dtype == np.float32 and waveform.shape == (item.n_samples,)
        assert 0.05 < np.abs(waveform).max() <= 1.2
        assert item.synthetic == item.id.startswith("question/")
    for item in embedded.SET.pictures("test")[:8]:
        picture = embedded.SET.picture(item)
        assert picture.shape == (3, 128, 128) and picture.dtype == np.uint8
        assert picture[:, 0, 0].min() > 245, "drawn on white"
        assert picture.std() > 5, "not blank"


def test_there_are_enough_held_out_items_to_measure_on() -> None:
    assert len(embedded.SET.pictures("test")) >= 128
    assert len(embedded.SET.speech("test")) + len(embedded.SET.speech("validation")) >= 50
    assert {q.kind for q in embedded.SET.questions("test")} == {"name", "group"}


def test_manifest_is_plain_json_without_paths_of_the_builder() -> None:
    assert "/tmp" not in json.dumps(embedded.manifest())
