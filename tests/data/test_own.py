"""One's own data: the examples of docs/your-data.md work, and each mistake is one line."""

import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parent))
import made

from muomni.data.items import (
    KINDS,
    SPLITS,
    Conversation,
    DialogueItem,
    Item,
    PictureItem,
    SpeechItem,
    TextItem,
)
from muomni.data.prepare import is_there, prepare
from muomni.data.prepared import Prepared
from muomni.data.sources.own import OwnDataError, own

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-data.md").read_text(encoding="utf-8")
BLOCKS = {name: text for _, name, text in re.findall(r"```(\w+) ([\w.]+)\n(.*?)```", PAGE, re.DOTALL)}
PATHS = re.findall(r"^(\S.*?)  +\S", re.search(r"```tree\n(.*?)```", PAGE, re.DOTALL)[1], re.MULTILINE)  # type: ignore[index]


def wav() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.sin(np.arange(8_000) * 0.3), 8_000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the examples name."""
    base = tmp_path / "mine"
    for name in ("clips/a.wav", "clips/b.wav", "pictures/a.png", "pictures/b.png"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(wav() if name.endswith("wav") else made.drawing(len(name)))
    return base


def prepared(path: Path, root: Path) -> list[Item]:
    source = Prepared([prepare(own("mine", path), root, cache=root)])
    return [item for kind in KINDS for split in SPLITS for item in source.items(kind, split)]


def test_the_page_shows_every_form() -> None:
    assert set(BLOCKS) == {"manifest.csv", "manifest.jsonl", "texts.jsonl", "talks.jsonl"} and len(PATHS) == 6


def test_recordings_of_a_csv(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.csv").write_text(BLOCKS["manifest.csv"])
    items = prepared(folder / "manifest.csv", tmp_path / "root")
    assert all(isinstance(item, SpeechItem) for item in items)
    heard = {item.text: (item.speaker, item.n_samples) for item in items if isinstance(item, SpeechItem)}
    assert heard == {
        "good morning it is nine o'clock": ("ann", 16_000), "see you tomorrow": ("bob", 16_000)
    }  # fmt: skip


def test_pictures_of_json_lines(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.jsonl").write_text(BLOCKS["manifest.jsonl"])
    items = prepared(folder / "manifest.jsonl", tmp_path / "root")
    shown = {i.label: (i.tags, i.group) for i in items if isinstance(i, PictureItem)}
    assert shown == {"red house": (("building", "roof"), "place"), "green tree": ((), "")}


def test_texts_with_a_split_of_their_own(folder: Path, tmp_path: Path) -> None:
    (folder / "texts.jsonl").write_text(BLOCKS["texts.jsonl"])
    items = prepared(folder / "texts.jsonl", tmp_path / "root")
    assert {i.text: i.split for i in items if isinstance(i, TextItem)}["Another one."] == "validation"


def test_conversations_with_and_without_media(folder: Path, tmp_path: Path) -> None:
    (folder / "talks.jsonl").write_text(BLOCKS["talks.jsonl"])
    root = tmp_path / "root"
    items = {item.id: item for item in prepared(folder / "talks.jsonl", root)}
    assert isinstance(talk := items["mine/0000001"], Conversation) and talk.turns[0] == "Hello!"
    assert isinstance(seen := items["mine/0000002"], DialogueItem) and seen.messages[0].images == (0,)
    assert isinstance(heard := items["mine/0000003"], DialogueItem) and heard.messages[0].clips == (0,)
    source = Prepared([root / "mine"])
    (
        source.items("dialogues", "train"),
        source.items("dialogues", "validation"),
        source.items("dialogues", "test"),
    )
    assert source.file(heard) == (folder / "clips/b.wav").read_bytes()


def test_parquet_holds_the_same(folder: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: muomni[hub]")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [json.loads(line) for line in BLOCKS["manifest.jsonl"].splitlines()]
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "rows.parquet")
    items = prepared(folder / "rows.parquet", tmp_path / "root")
    assert {i.label for i in items if isinstance(i, PictureItem)} == {"red house", "green tree"}


def test_a_folder_speaks_for_itself(tmp_path: Path) -> None:
    base = tmp_path / "folder"
    for name in PATHS:
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".md"):
            path.write_text(f"words of {path.stem}\n\nmore of them")
        else:
            path.write_bytes(wav() if path.suffix == ".wav" else made.drawing(len(name)))
    items = prepared(base, tmp_path / "root")
    assert sorted(item.id for item in items) == [
        "mine/animals/red fox/1.png", "mine/house.jpg", "mine/notes/letter.md/0000", "mine/voices/a.wav"
    ]  # fmt: skip
    by_id = {item.id: item for item in items}
    assert by_id["mine/animals/red fox/1.png"].label == "red fox"  # type: ignore[union-attr]
    assert by_id["mine/voices/a.wav"].text == "words of a more of them"  # type: ignore[union-attr]


def test_a_changed_folder_is_prepared_again(folder: Path, tmp_path: Path) -> None:
    manifest = folder / "texts.jsonl"
    manifest.write_text('{"text": "one"}\n')
    first = own("mine", manifest)
    prepare(first, tmp_path / "root", cache=tmp_path)
    assert is_there(own("mine", manifest), tmp_path / "root")
    manifest.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert not is_there(own("mine", manifest), tmp_path / "root")
    assert len(prepared(manifest, tmp_path / "root")) == 2


def test_a_missing_or_broken_file_is_quarantined(folder: Path, tmp_path: Path) -> None:
    (folder / "clips/broken.wav").write_bytes(b"RIFF" + bytes(40))
    rows = [{"audio": f"clips/{n}.wav", "text": f"clip {n}"} for n in ("a", "broken", "absent")]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    target = prepare(own("mine", folder / "m.jsonl"), tmp_path / "root", cache=tmp_path, bad_share=0.7)
    told = [json.loads(line) for line in (target / "quarantine.jsonl").read_text().splitlines()]
    assert [line["id"] for line in told] == ["mine/0000002", "mine/0000003"]
    assert "no such file" in told[1]["reason"] and "clips/absent.wav" in told[1]["reason"]


BAD_ROWS = {
    "half a character": ({"text": "\ud800"}, r"U\+D800, half of a character"),
    "half a character in an id": ({"text": "x", "id": "\udfff"}, r"U\+DFFF, half of a character"),
    "a control character in an id": ({"text": "x", "id": "a\x01"}, "control character"),
    "a number without a name": (
        {"audio": "clips/a.wav", "text": "9" * 400},
        "numbers cannot be put into words",
    ),
    "numbers of a language": (
        {"audio": "clips/a.wav", "text": "5", "language": "zh"},
        "numbers in language 'zh'",
    ),
    "no path": ({"image": "pictures/\x00.png", "text": "x"}, "is no path"),
    "a folder": ({"audio": "clips", "text": "x"}, "is not a file"),
    "a pipe": ({"audio": "clips/pipe.wav", "text": "x"}, "is not a file"),
    "too large": ({"image": "pictures/large.png", "text": "x"}, "256 MiB|257 MiB"),
    "a picture of a dialogue that is absent": (
        {"messages": [{"role": "user", "images": ["pictures/none.png"]}, {"role": "assistant", "text": "y"}]},
        "none.png: no such file",
    ),
    "a clip of a dialogue that is broken": (
        {"messages": [{"role": "user", "audio": "manifest.jsonl"}, {"role": "assistant", "text": "y"}]},
        "mine/0000002: is not a readable recording",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_cannot_be_used_is_quarantined_and_the_others_are_not(
    name: str, folder: Path, tmp_path: Path
) -> None:
    row, told = BAD_ROWS[name]
    os.mkfifo(folder / "clips/pipe.wav")
    with (folder / "pictures/large.png").open("wb") as file:
        file.truncate(256 * 2**20 + 1)
    rows = [{"text": "before"}, row, {"text": "after"}]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    target = prepare(own("mine", folder / "manifest.jsonl"), tmp_path / "root", cache=tmp_path, bad_share=0.4)
    (line,) = [json.loads(line) for line in (target / "quarantine.jsonl").read_text().splitlines()]
    assert line["id"].startswith("mine/") and re.search(told, line["reason"])
    source = Prepared([target])
    assert {i.text for split in SPLITS for i in source.texts(split)} == {"before", "after"}


def test_messages_without_media_may_say_so_with_null(folder: Path, tmp_path: Path) -> None:
    (folder / "m.jsonl").write_text(talk({"text": "x", "images": None, "audio": None}, {"text": "y"}))
    (item,) = prepared(folder / "m.jsonl", tmp_path / "root")
    assert isinstance(item, Conversation) and item.turns == ("x", "y")


def test_a_line_ends_at_a_line_feed_alone(folder: Path, tmp_path: Path) -> None:
    text = "one\u2028two\u0085three\x0cfour"
    (folder / "m.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\r\n\n")
    (item,) = prepared(folder / "m.jsonl", tmp_path / "root")
    assert isinstance(item, TextItem) and item.text == text


def test_a_manifest_may_be_larger_than_a_text(folder: Path, tmp_path: Path) -> None:
    line = json.dumps({"text": "a" * 2**20}) + "\n"
    (folder / "m.jsonl").write_text("".join(line.replace('"a', f'"{i} a') for i in range(18)))
    assert len(prepared(folder / "m.jsonl", tmp_path / "root")) == 18


def test_sets_below_the_folder_are_no_part_of_it_and_change_nothing(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.wav"):
        path.with_suffix(".txt").write_text("words")
    root = folder / "sets"
    first = own("mine", folder, root=root)
    target = prepare(first, root, cache=root)
    assert is_there(own("mine", folder, root=root), root)
    (folder / "manifest.jsonl").write_text(json.dumps({"audio": "clips/a.wav", "text": "x"}))
    once = own("rows", folder / "manifest.jsonl", root=root)
    (root / "new.wav").write_bytes(wav())
    assert own("rows", folder / "manifest.jsonl", root=root).version == once.version
    (folder / "clips/a.wav").write_bytes(wav() + b"more")
    assert own("rows", folder / "manifest.jsonl", root=root).version != once.version
    assert {i.id for s in SPLITS for i in Prepared([target]).speech(s)} == {
        "mine/clips/a.wav",
        "mine/clips/b.wav",
    }


def test_a_recording_and_a_picture_may_have_one_name(tmp_path: Path) -> None:
    base = tmp_path / "folder"
    base.mkdir()
    (base / "a.wav").write_bytes(wav())
    (base / "a.png").write_bytes(made.drawing(1))
    (base / "a.txt").write_text("both")
    assert {item.id for item in prepared(base, tmp_path / "root")} == {"mine/a.wav", "mine/a.png"}


def talk(asked: dict[str, object], answered: dict[str, object]) -> str:
    return json.dumps({"messages": [{"role": "user", **asked}, {"role": "assistant", **answered}]})


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("m.jsonl", '{"audoi": "clips/a.wav", "text": "x"}', r"row 1: 'audoi' is no column; did you mean audio\?"),
        ("m.jsonl", '{"audio": "../../etc/passwd", "text": "x"}', r"row 1: '../../etc/passwd' leads out of"),
        ("m.jsonl", '{"audio": "/etc/passwd", "text": "x"}', r"'/etc/passwd' leads out of .*; copy the file there"),
        ("m.jsonl", '{"audio": "out.wav", "text": "x"}', r"'out.wav' leads out of"),
        ("m.jsonl", '{"audio": "clips/a.wav"}', "row 1: audio without text; give what is said"),
        ("m.jsonl", '{"speaker": "ann"}', "row 1: holds nothing to learn from"),
        ("m.jsonl", '{"text": "x", "tags": "y"}', "row 1: 'tags' does not go with 'text'"),
        ("m.jsonl", '{"text": "x", "split": "dev"}', "split 'dev'; expected train, validation or test"),
        ("m.jsonl", '{"text": "x"}\n["y"]', "row 2: expected an object"),
        ("m.jsonl", '{"text": "x"', "row 1: is not JSON"),
        ("m.jsonl", "", "is empty; expected a row"),
        ("m.jsonl", '{"messages": [{"role": "user", "text": "x"}]}', "expected a list of two or more"),
        ("m.jsonl", '{"messages": [{"role": "assistant", "text": "x"}, {"role": "user", "text": "y"}]}',
         "message 1 is by 'assistant'; expected user and assistant in turn"),
        ("m.jsonl", talk({"content": [{"type": "video"}]}, {"text": "y"}),
         "a part of type 'video'; expected text"),
        ("m.jsonl", talk({"text": "x"}, {"text": "y", "images": ["pictures/a.png"]}),
         "an assistant answers with text and nothing else"),
        ("m.jsonl", talk({"content": ["x"]}, {"text": "y"}), "a part of type None; expected text"),
        ("m.jsonl", talk({"content": [{"type": "image", "image": 5}]}, {"text": "y"}),
         "a part of type 'image' holds 5; expected a string"),
        ("m.jsonl", talk({"text": "x", "images": 5}, {"text": "y"}), "images: 5; expected a path or a list of paths"),
        ("m.jsonl", '{"image": "pictures/a.png", "text": "x", "tags": 5}', "tags: 5; expected words with commas"),
        ("m.jsonl", b'{"text": "\xff"}', "row 1: is not UTF-8"),
        ("m.jsonl", '{"text": "' + "a" * (16 * 2**20) + '"}', "row 1: 16.0 MiB of text, at most 16 are read"),
        ("m.csv", b"text\nfine\n\xff\xfe\n", "after row [01]: is not UTF-8"),
        ("m.csv", "text,split\na,train,more\n", "row 1: has not 2 cells"),
        ("m.csv", 'text\nb\n"a\n', "row 2: unexpected end of data; quote cells"),
        ("m.txt", "text", "is no manifest; expected .jsonl, .csv"),
        ("absent.jsonl", None, "is not there; give a folder or a manifest"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    name: str, text: str | bytes | None, told: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "out.wav").symlink_to(tmp_path / "elsewhere.wav")
    (tmp_path / "elsewhere.wav").write_bytes(wav())
    if text is not None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(OwnDataError, match=told) as error:
        prepare(own("mine", folder / name), tmp_path / "root", cache=tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "root" / "mine").exists()


def test_media_without_words_and_text_that_is_not_utf8_are_told(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.wav").write_bytes(wav())
    with pytest.raises(OwnDataError, match=r"a\.wav: has no words; put them into a\.txt beside it"):
        prepare(own("mine", tmp_path / "f"), tmp_path / "root", cache=tmp_path)
    (tmp_path / "f" / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(OwnDataError, match=r"a\.txt: is not UTF-8"):
        prepare(own("mine", tmp_path / "f"), tmp_path / "root", cache=tmp_path)
