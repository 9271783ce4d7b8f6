"""Preparing: whole or not at all, the same bytes for any number of workers, resumed, judged, never leaking."""

import contextlib
import dataclasses
import functools
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import made

from muomni.data import prepare as preparing
from muomni.data.items import KINDS, SPLITS, DialogueItem, PictureItem, SpeechItem
from muomni.data.media import read_audio
from muomni.data.prepare import prepare
from muomni.data.prepared import MANIFEST, Prepared, PreparedDataError, folders, open_source, verify
from muomni.data.sources.adapter import Found
from muomni.data.splits import normalised, picture_fingerprint, split_of, text_fingerprint


def hashes(folder: Path) -> dict[str, str]:
    return {name: one["sha256"] for name, one in json.loads((folder / MANIFEST).read_text())["files"].items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    return prepare(made.adapter(), root, cache=root)


def test_what_is_prepared_is_what_was_found(whole: Path) -> None:
    source = Prepared([whole])
    found = {one.id: one for one in made.find(whole)}
    seen = 0
    for kind, split in itertools.product(KINDS, SPLITS):
        for item in source.items(kind, split):
            one = found[item.id]
            assert one.kind == kind and split == split_of(kind, one.group) == item.split
            payload = one.payload() if callable(one.payload) else one.payload or b"".join(one.files)
            assert source.file(item) == payload
            seen += 1
            if isinstance(item, SpeechItem):
                assert (item.text, item.raw_text) == (one.fields["text"], one.fields["raw_text"])
                expected = read_audio(payload)
                assert item.n_samples == len(expected) == pytest.approx(16_000 * made.SECONDS, abs=2)
                np.testing.assert_array_equal(source.waveform(item), expected)
            if isinstance(item, PictureItem):
                assert source.picture(item, side=64).shape == (3, 64, 64)
            if isinstance(item, DialogueItem):
                assert item.messages[0].images == (0,) and item.messages[0].clips == (1,)
                assert [len(file) for file in one.files] == list(item.sizes)
    assert seen + sum(source.left_out.values()) == len(found)
    assert verify(whole) == len(hashes(whole)) >= 10


def test_counts_of_the_manifest_are_those_of_the_items(whole: Path) -> None:
    counts = json.loads((whole / MANIFEST).read_text())["counts"]
    source = Prepared([whole])
    for kind, split in itertools.product(KINDS, SPLITS):
        items = source.items(kind, split)
        own = counts[kind].get(split, {"items": 0, "length": 0})
        left = source.left_out[kind] if split == "train" else 0
        assert own["items"] == len(items) + left
        if kind == "speech":
            assert own["length"] == source.lengths(kind, split).sum() == sum(i.n_samples for i in items)


@pytest.mark.parametrize("n_workers", [2, 4])
def test_any_number_of_workers_gives_the_same_bytes(n_workers: int, whole: Path, tmp_path: Path) -> None:
    again = prepare(made.adapter(), tmp_path, cache=tmp_path, n_workers=n_workers)
    assert hashes(again) == hashes(whole)
    assert (again / MANIFEST).read_bytes() == (whole / MANIFEST).read_bytes()


def test_a_set_that_is_there_is_not_prepared_again(whole: Path) -> None:
    def none(cache: Path) -> Iterator[Found]:
        raise AssertionError("looked for items again")

    before = (whole / MANIFEST).stat().st_mtime_ns
    assert prepare(dataclasses.replace(made.adapter(), find=none), whole.parent, cache=whole) == whole
    assert (whole / MANIFEST).stat().st_mtime_ns == before
    with pytest.raises(AssertionError, match="looked for items"):
        prepare(dataclasses.replace(made.adapter(), find=none, version=2), whole.parent, cache=whole)
    assert verify(whole), "the older set stays until the new one is whole"


@pytest.mark.parametrize("stop_at", [1, 30, 77, 200, 411])
def test_a_stopped_run_goes_on_and_gives_the_same_bytes(
    stop_at: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "SHARD_ITEMS", 64)
    expected = hashes(prepare(made.adapter(), tmp_path / "once", cache=tmp_path))
    made_items: list[str] = []

    def stopping(cache: Path, *, at: int | None) -> Iterator[Found]:
        for i, one in enumerate(made.find(cache)):
            if i == at:
                raise KeyboardInterrupt
            yield dataclasses.replace(one, payload=functools.partial(_noted, one, made_items))

    def run(at: int | None) -> Path:
        source = dataclasses.replace(made.adapter(), find=functools.partial(stopping, at=at))
        return prepare(source, tmp_path / "twice", cache=tmp_path)

    with pytest.raises(KeyboardInterrupt):
        run(stop_at)
    assert not (tmp_path / "twice" / "made").exists()
    made_items.clear()
    assert hashes(run(None)) == expected
    n_found = sum(1 for _ in made.find(tmp_path))
    assert len(made_items) == n_found - stop_at // 64 * 64


class _Killed(BaseException):
    """Nothing catches it but the test."""


def _killing(call: Callable[..., object], calls: Iterator[int], at: int) -> Callable[..., object]:
    """`call`, but for the one number `at` of all calls counted together."""

    @functools.wraps(call)
    def counted(*arguments: object, **named: object) -> object:
        if next(calls) == at:
            raise _Killed
        return call(*arguments, **named)

    return counted


TOUCHES = (
    (Path, "rename"), (Path, "unlink"), (Path, "open"), (Path, "write_text"), (shutil, "rmtree"),
    (preparing.index, "save"), (preparing.files, "replace"),
)  # fmt: skip


def test_a_kill_anywhere_at_the_end_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "SHARD_ITEMS", 64)
    expected = hashes(prepare(made.adapter(n=40), tmp_path / "once", cache=tmp_path))
    finish = preparing._Writer.finish
    for stop_at in itertools.count():
        calls, root = itertools.count(), tmp_path / f"killed {stop_at}"

        def killed(
            *arguments: object, calls: Iterator[int] = calls, at: int = stop_at, **named: object
        ) -> None:
            with monkeypatch.context() as patch:
                for owner, name in TOUCHES:
                    patch.setattr(owner, name, _killing(getattr(owner, name), calls, at))
                finish(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(preparing._Writer, "finish", killed)
        with contextlib.suppress(_Killed):
            prepare(made.adapter(n=40), root, cache=tmp_path)
            break
        monkeypatch.setattr(preparing._Writer, "finish", finish)
        assert hashes(prepare(made.adapter(n=40), root, cache=tmp_path)) == expected, stop_at
    assert stop_at > 10


def test_two_processes_do_not_prepare_one_set(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, pathlib; from muomni import files\n"
         "with files.locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()",
         str(tmp_path / ".made.lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(PreparedDataError, match="another process prepares made"):
        prepare(made.adapter(n=20), tmp_path, cache=tmp_path)
    holder.communicate("")
    assert prepare(made.adapter(n=20), tmp_path, cache=tmp_path).is_dir()


def _noted(one: Found, made_items: list[str]) -> bytes:
    made_items.append(one.id)
    return one.payload() if callable(one.payload) else one.payload


def test_half_a_percent_of_bad_items_is_quarantined_and_counted(tmp_path: Path) -> None:
    folder = prepare(made.adapter(n=400, n_bad=8), tmp_path, cache=tmp_path)
    lines = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"made/speech/{i}" for i in range(8)]
    assert "could not be synthesised" in lines[1]["reason"] and "made/speech/0" in lines[0]["reason"]
    assert json.loads((folder / MANIFEST).read_text())["quarantined"] == 8
    ids = {item.id for split in SPLITS for item in Prepared([folder]).speech(split)}
    assert len(ids) == 392 and not ids & {line["id"] for line in lines}


def test_beyond_the_budget_it_stops_with_one_line_and_leaves_no_set(tmp_path: Path) -> None:
    with pytest.raises(PreparedDataError) as error:
        prepare(made.adapter(n=120, n_bad=8), tmp_path, cache=tmp_path)
    message = str(error.value)
    assert "8 of the first 516 items of made cannot be used, at most 1 % may be" in message
    assert "made/speech/0" in message and "\n" not in message and "--bad-share" in message
    assert not (tmp_path / "made").exists()
    assert prepare(made.adapter(n=120, n_bad=8), tmp_path, cache=tmp_path, bad_share=0.02).is_dir()


def test_a_full_disk_loses_no_set_and_no_finished_shard(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "SHARD_ITEMS", 64)
    real, calls = preparing._write_tar, itertools.count()

    def full(*arguments: object) -> object:
        if next(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(preparing, "_write_tar", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(made.adapter(), tmp_path, cache=tmp_path)
    assert not (tmp_path / "made").exists() and len(list((tmp_path / ".made.partial").glob("done-*"))) == 3
    assert verify(prepare(made.adapter(), tmp_path, cache=tmp_path))


def test_an_id_given_twice_is_refused(tmp_path: Path) -> None:
    def twice(cache: Path) -> Iterator[Found]:
        one = next(made.find(cache))
        yield from (one, one)

    with pytest.raises(PreparedDataError, match=r"two items are named made/speech/0"):
        prepare(dataclasses.replace(made.adapter(), find=twice), tmp_path, cache=tmp_path)


def test_training_sentences_of_a_held_out_speaker_are_left_out(tmp_path: Path) -> None:
    folder = prepare(made.adapter(held_out_speakers=("voice 1",)), tmp_path, cache=tmp_path)
    source = Prepared([folder])
    assert {item.speaker for item in source.speech("train")} == {"voice 0", "voice 2"}
    held = [item for split in ("validation", "test") for item in source.speech(split)]
    assert {item.speaker for item in held} == {"voice 0", "voice 1", "voice 2"}
    (count,) = json.loads((folder / MANIFEST).read_text())["left_out"].values()
    assert len(source.speech("train")) + len(held) + count == 120


def test_no_training_item_is_nearly_a_held_out_one_of_any_set(whole: Path, tmp_path: Path) -> None:
    """The other set holds, for training, held-out sentences in other letters, and held-out pictures at another size."""
    first = Prepared([whole])
    held = first.speech("test")[0], first.pictures("validation")[0]

    def leaking(cache: Path) -> Iterator[Found]:
        text = held[0].text.upper().replace(" ", ",  ")
        yield Found(
            kind="speech", id="leak/speech", group="another", payload=made.tone(3), suffix=".flac", split="train",
            fields={"text": text, "raw_text": text, "speaker": "x", "synthetic": False},
        )  # fmt: skip
        number = int(held[1].id.rsplit("/", 1)[1])
        yield Found(
            kind="pictures", id="leak/picture", group="another", suffix=".png", split="train",
            payload=made.drawing(number, side=200), fields={"label": "x", "tags": [], "group": "y"},
        )  # fmt: skip
        yield Found(
            kind="pictures", id="leak/name", group="another", suffix=".png", split="train",
            payload=made.drawing(99_998), fields={"label": held[1].label.title(), "tags": [], "group": "y"},
        )  # fmt: skip
        yield Found(
            kind="pictures", id="fine/picture", group="fine", suffix=".png", split="train",
            payload=made.drawing(99_999), fields={"label": "x", "tags": [], "group": "y"},
        )  # fmt: skip

    other = prepare(made.adapter(name="other", n=1), tmp_path, cache=tmp_path)
    assert other.is_dir()
    leak = prepare(dataclasses.replace(made.adapter(name="leak"), find=leaking), tmp_path, cache=tmp_path)
    alone, both = Prepared([leak]), Prepared([whole, leak])
    assert {i.id for i in alone.pictures("train")} == {"leak/picture", "leak/name", "fine/picture"}
    assert len(alone.speech("train")) == 1
    ids = {i.id for i in (*both.pictures("train"), *both.speech("train"))}
    assert "fine/picture" in ids and not ids & {"leak/picture", "leak/name", "leak/speech"}
    assert both.left_out["speech"] >= 1 and both.left_out["pictures"] >= 1


def test_splits_share_no_text_concept_or_fingerprint(whole: Path) -> None:
    source = Prepared([whole])
    for kind in ("speech", "conversations", "pictures"):
        by_split = [
            {text_fingerprint(i.text) if kind != "pictures" else i.label for i in source.items(kind, split)}  # type: ignore[union-attr]
            for split in SPLITS
        ]
        assert all(by_split) and not any(a & b for a, b in itertools.combinations(by_split, 2))


def test_changed_and_missing_files_are_told(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "made")
    shard = copy / "shard-00000.tar"
    payload = bytearray(shard.read_bytes())
    payload[len(payload) // 2] ^= 1
    shard.write_bytes(payload)
    with pytest.raises(PreparedDataError, match=r"shard-00000.tar: SHA-256 .*, expected"):
        verify(copy)
    shard.unlink()
    with pytest.raises(PreparedDataError, match=r"shard-00000.tar: missing"):
        verify(copy)
    (copy / "index" / "length.bin").write_bytes(b"")
    with pytest.raises(PreparedDataError, match="prepare the set again"):
        Prepared([copy])


def test_sets_are_found_by_name_and_path_and_a_missing_one_names_the_command(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folders("made", root=whole.parent) == [whole]
    assert folders(f"{whole}, made", root=whole.parent) == [whole]
    monkeypatch.setenv("MUOMNI_DATA", str(whole.parent))
    assert isinstance(open_source("made"), Prepared)
    with pytest.raises(
        PreparedDataError, match=r"'absent' is not prepared in .*`muomni data prepare absent`"
    ):
        open_source("absent")


def test_near_duplicates_have_equal_fingerprints_and_others_have_not() -> None:
    from PIL import Image

    drawing = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9), dtype=np.uint8))
    small, large = (drawing.resize((n, n), Image.Resampling.BOX) for n in (90, 207))
    assert picture_fingerprint(small) == picture_fingerprint(large.convert("RGB"))
    assert picture_fingerprint(small) != picture_fingerprint(small.rotate(90))
    assert text_fingerprint("It's  9 o'clock!") == text_fingerprint("its 9 oclock")
    assert normalised("Ünïcode-Straße") == "ünïcode strasse"
