"""Public sets on small files in their own formats, and downloads that break, go on, or bring something else."""

import hashlib
import io
import itertools
import json
import shutil
import sys
import tarfile
import threading
import types
import zipfile
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import made
from placed import found, place

from muomni.data.admit import Admitted, admit
from muomni.data.prepare import prepare
from muomni.data.prepared import manifest
from muomni.data.sources import fetch, hub, public_pictures, public_speech, public_texts
from muomni.data.sources.download import DownloadError, download
from muomni.data.sources.fetch import Package, SourceError


def test_librispeech_keeps_its_splits_and_speakers(cache: Path) -> None:
    for split, (speaker, said) in {
        "train": ("103", "CHAPTER ONE"), "validation": ("84", "I AM GOING"), "test": ("61", "IT'S DONE")
    }.items():  # fmt: skip
        base = f"LibriSpeech/part/{speaker}/1240"
        place(
            public_speech.LIBRISPEECH[split], cache,  # type: ignore[index]
            {f"{base}/{speaker}-1240.trans.txt": f"{speaker}-1240-0000 {said}\n",
             f"{base}/{speaker}-1240-0000.flac": made.tone(3)},
        )  # fmt: skip
    items = found("librispeech", cache)
    assert [(one.split, one.fields["speaker"], one.group) for one in items] == [
        ("train", "103", "chapter one"), ("validation", "84", "i am going"), ("test", "61", "it's done")
    ]  # fmt: skip
    assert isinstance(admit(items[0]), Admitted)


def test_a_transcript_without_its_recording_is_told(cache: Path) -> None:
    place(public_speech.LIBRISPEECH["train"], cache, {"a/b/1-2.trans.txt": "1-2-0000 HELLO\n"})
    with pytest.raises(SourceError, match=r"1-2-0000\.flac: its transcript is there, it is not"):
        found("librispeech", cache)


def test_ljspeech_reads_the_normalised_transcript(cache: Path) -> None:
    line = 'LJ001-0001|In 1465, "so to say"|In fourteen sixty-five, "so to say"\n'
    place(public_speech.LJSPEECH, cache,
          {"LJSpeech-1.1/metadata.csv": line, "LJSpeech-1.1/wavs/LJ001-0001.wav": made.tone(1)})  # fmt: skip
    (one,) = found("ljspeech", cache)
    assert one.group == "in fourteen sixty five so to say" and one.fields["raw_text"].startswith("In 1465")
    assert isinstance(admit(one), Admitted)


def test_common_voice_is_what_the_user_put_there(cache: Path) -> None:
    with pytest.raises(
        DownloadError, match=r"common-voice cannot be downloaded for you; unpack its English archive"
    ):
        found("common-voice", cache)
    base = cache / "given" / "common-voice" / "cv" / "en"
    (base / "clips").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"has no train\.tsv; unpack the whole archive there"):
        found("common-voice", cache)
    for name in ("train", "dev", "test"):
        (base / f"{name}.tsv").write_text(
            f'client_id\tpath\tsentence\tup_votes\n{name * 8}\t{name}_1.mp3\t"Hello, {name}.\t2\n'
        )
        (base / "clips" / f"{name}_1.mp3").write_bytes(made.tone(2))
    items = found("common-voice", cache)
    assert [(one.split, one.group) for one in items] == [
        ("train", "hello train"), ("validation", "hello dev"), ("test", "hello test")
    ]  # fmt: skip
    assert len({one.fields["speaker"] for one in items}) == 3 and isinstance(admit(items[0]), Admitted)


def test_coco_has_five_sentences_and_its_splits(cache: Path) -> None:
    files: dict[str, bytes | str] = {}
    kept = next(i for i in itertools.count(10) if zlib.crc32(f"coco {i}".encode()) % 40 == 0)
    for year, image, other in (("train2017", 9, kept), ("val2017", 139, 140)):
        rows = [
            {"image_id": one, "caption": f"A  dog number {i}."} for i in range(5) for one in (image, other)
        ]
        listed = {"images": [{"id": image, "file_name": f"{image:012d}.jpg"}, {"id": 7, "file_name": "x.jpg"},
                             {"id": other, "file_name": f"{other:012d}.jpg"}],
                  "annotations": rows}  # fmt: skip
        files[f"annotations/captions_{year}.json"] = json.dumps(listed)
    place(public_pictures.ANNOTATIONS, cache, files)
    place(public_pictures.PICTURES["train"], cache, {"train2017/000000000009.jpg": made.drawing(1)})
    place(public_pictures.PICTURES["test"], cache, {"val2017/000000000139.jpg": made.drawing(2)})
    train, validation, *test = found("coco", cache)
    assert [one.id for one in (train, validation, *test)] == [
        "coco/9",
        f"coco/{kept}",
        "coco/139",
        "coco/140",
    ]
    assert (train.split, validation.split, *(one.split for one in test)) == (
        "train",
        "validation",
        "test",
        "test",
    )
    assert train.fields["label"] == "a dog number 0"
    assert train.fields["captions"] == [f"A dog number {i}." for i in range(5)]
    assert isinstance(admit(train), Admitted)


@pytest.mark.parametrize(
    ("listing", "text"),
    [
        ("captions.txt", 'image,caption\n1.jpg,"A dog, a cat"\n1.jpg,Two animals\n'),
        ("Flickr8k.token.txt", "1.jpg#0\tA dog, a cat\n1.jpg#1\tTwo animals\n"),
        (
            "results.csv",
            "image_name| comment_number| comment\n1.jpg| 0| A dog, a cat\n1.jpg| 1| Two animals\n",
        ),
    ],
)
def test_flickr_captions_of_every_listing(listing: str, text: str, cache: Path) -> None:
    folder = cache / "given" / "flickr8k"
    (folder / "Images").mkdir(parents=True)
    (folder / listing).write_text(text)
    with pytest.raises(SourceError, match=r"has captions of 1\.jpg and not the picture"):
        found("flickr8k", cache)
    (folder / "Images" / "1.jpg").write_bytes(made.drawing(4))
    (one,) = found("flickr8k", cache)
    assert one.fields["captions"] == ["A dog, a cat", "Two animals"]


PINNED = fetch.Package(
    registry="hub", name="a/b", version="abc", sha256="", licence="MIT", attribution="us", gives="texts"
)


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub whose Parquet files are lists of rows, and what was fetched from it."""
    state: dict[str, Any] = {"files": {}, "fetched": [], "asked": 0, "revisions": []}

    class Failed(Exception):
        pass

    def info(repository: str) -> types.SimpleNamespace:
        state["asked"] += 1
        return types.SimpleNamespace(sha=f"commit {state['asked']}")

    def hub_download(repository: str, name: str, *, revision: str, **_: object) -> str:
        state["fetched"].append(name)
        state["revisions"].append(revision)
        return name

    class File:
        def __init__(self, path: str) -> None:
            self.rows = state["files"][path]
            self.schema_arrow = types.SimpleNamespace(names=list(self.rows[0]))

        def iter_batches(self, batch_size: int, columns: list[str]) -> Iterator[Any]:
            chosen = [{name: row[name] for name in columns} for row in self.rows]
            for start in range(0, len(chosen), batch_size):
                yield types.SimpleNamespace(to_pylist=lambda part=chosen[start : start + batch_size]: part)

    tools = {
        "huggingface_hub": types.SimpleNamespace(
            list_repo_files=lambda *_, **__: list(state["files"]), hf_hub_download=hub_download,
            HfApi=lambda: types.SimpleNamespace(dataset_info=info), errors=types.SimpleNamespace(HfHubHTTPError=Failed),
        ),
        "pyarrow.parquet": types.SimpleNamespace(ParquetFile=File),
    }  # fmt: skip
    monkeypatch.setattr(hub, "build_tool", tools.__getitem__)
    return state


def test_stories_are_taken_file_by_file_until_there_are_enough(
    cache: Path, repository: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository["files"] = {
        "data/train-00000-of-00003.parquet": [
            {"text": "One day, a cat."},
            {"text": "one day a CAT"},
            {"text": ""},
        ],
        "data/train-00001-of-00003.parquet": [{"text": "x" * 50}, {"text": "y" * 50}],
        "data/train-00002-of-00003.parquet": [{"text": "never read"}],
        "data/validation-00000.parquet": [{"text": "another split"}],
    }
    (adapter,) = (a for a in public_texts.ADAPTERS if a.name == "tinystories")
    keywords = {**adapter.find.keywords, "most": 60}  # type: ignore[attr-defined]
    items = list(public_texts._find(cache, **keywords))
    assert [one.fields["text"][:7] for one in items] == ["One day", "xxxxxxx"]
    assert repository["fetched"] == ["data/train-00000-of-00003.parquet", "data/train-00001-of-00003.parquet"]


def test_spoken_questions_have_their_answers(cache: Path, repository: dict[str, Any]) -> None:
    row = {"index": "0", "round": "1", "question": "What is 2 and 2?", "answer": "Four.", "answer_snac": "",
           "question_audio": {"bytes": made.tone(5), "path": None}}  # fmt: skip
    repository["files"] = {"data/train-00000.parquet": [row, {**row, "answer": ""}]}
    (one,) = found("voice-assistant", cache)
    assert (one.group, one.fields["answer"], one.fields["synthetic"]) == (
        "what is two and two",
        "Four.",
        True,
    )
    assert isinstance(admit(one), Admitted)


def test_a_changed_repository_is_told(cache: Path, repository: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="has no Parquet files under data/"):
        list(hub.parquet_rows(PINNED, cache, columns=("text",)))
    repository["files"] = {"data/a.parquet": [{"story": "x"}]}
    with pytest.raises(SourceError, match=r"has no column 'text'; its layout has changed"):
        list(hub.parquet_rows(PINNED, cache, columns=("text",)))


def test_a_commit_is_asked_for_once_and_stands_in_the_manifest(
    cache: Path, repository: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository["files"] = {"data/train-00000.parquet": [{"text": f"Text number {i}."} for i in range(40)]}
    (adapter,) = (a for a in public_texts.ADAPTERS if a.name == "tinystories")
    folder = prepare(adapter, cache / "root", cache=cache)
    (source,) = manifest(folder)["sources"]
    assert (source["registry"], source["name"]) == ("hub", "roneneldan/TinyStories")
    assert source["version"] == "commit 1" and set(repository["revisions"]) == {"commit 1"}
    shutil.rmtree(folder)
    prepare(adapter, cache / "root", cache=cache)
    assert repository["asked"] == 1 and set(repository["revisions"]) == {"commit 1"}
    assert hub.revision(PINNED, cache) == "abc"


CONTENT = bytes(range(256)) * 9_000


class Server(BaseHTTPRequestHandler):
    """Sends CONTENT: with ranges, without, or cut after a part."""

    asked: list[str | None]

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range"))
        start = 0
        if "ranges" in self.path and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
        if "absent" in self.path:
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT) // 3 if "cut" in self.path and len(self.asked) == 1 else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["ranges", "plain"])
def test_a_broken_download_goes_on_or_begins_again(kind: str, server: str, tmp_path: Path) -> None:
    target = tmp_path / "file"
    with pytest.raises(DownloadError, match="the next call goes on from"):
        download(f"{server}/{kind}-cut", target)
    assert not target.exists() and (tmp_path / "file.partial").stat().st_size == len(CONTENT) // 3
    seen: list[tuple[int, int]] = []
    download(f"{server}/{kind}-cut", target, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT and seen[-1] == (len(CONTENT), len(CONTENT))
    assert Server.asked == [None, f"bytes={len(CONTENT) // 3}-"]


def test_a_download_that_was_whole_but_not_renamed_is_taken(server: str, tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(CONTENT)
    assert download(f"{server}/ranges", tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_refuses_or_is_not_there_is_one_line(server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the server says 404 Not Found; try again later"):
        download(f"{server}/absent", tmp_path / "file")
    with pytest.raises(DownloadError, match="the next call goes on from 0 bytes") as error:
        download("http://127.0.0.1:9/file", tmp_path / "file")
    assert "\n" not in str(error.value)


def archive(members: dict[str, bytes], kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as bundle:
            for name, content in members.items():
                bundle.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as bundle:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                bundle.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def serving(*contents: bytes) -> Callable[..., None]:
    """A download that brings these in turn."""
    served = iter(contents)

    def serve(address: str, target: Path, progress: object) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(next(served))

    return serve


def url(name: str, sha256: str = "") -> Package:
    return Package(registry="url", name=f"https://example.invalid/{name}", version="1", sha256=sha256, licence="x",
                   attribution="y", gives="z")  # fmt: skip


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["../outside", "/tmp/outside-of-it"])
def test_an_archive_that_leads_out_of_itself_is_not_unpacked(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = archive({name: b"evil", "fine": b"x"}, kind)
    monkeypatch.setattr(
        fetch,
        "download",
        lambda address, target, progress: target.parent.mkdir(parents=True) or target.write_bytes(payload),
    )
    if kind == "tar.gz" and name.startswith("/"):
        # An absolute name is taken as one inside, which does no harm.
        assert (fetch.fetch(url("a.tar.gz"), tmp_path) / name.lstrip("/")).read_bytes() == b"evil"
        assert not Path(name).exists()
        return
    with pytest.raises(SourceError, match="it is not unpacked"):
        fetch.fetch(url(f"a.{kind}"), tmp_path)
    assert not (tmp_path / "outside").exists() and not fetch.is_fetched(url(f"a.{kind}"), tmp_path)


def test_an_archive_is_the_published_one_or_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [archive({"a": b"1"}, "zip"), archive({"a": b"2"}, "zip"), archive({"a": b"1"}, "zip")]
    monkeypatch.setattr(fetch, "download", serving(*contents))
    package = url("a.zip")
    files = fetch.fetch(package, tmp_path)
    assert (files / "a").read_bytes() == b"1"
    # Lost, and then served anew with another content.
    shutil.rmtree(files)
    (files.parent / "archive" / "a.zip").unlink()
    with pytest.raises(SourceError, match=r"SHA-256 .*, expected .*; fetch it again"):
        fetch.fetch(package, tmp_path)
    assert (fetch.fetch(package, tmp_path) / "a").read_bytes() == b"1"
    pinned = url("b.zip", sha256=hashlib.sha256(b"something else").hexdigest())
    monkeypatch.setattr(
        fetch,
        "download",
        lambda address, target, progress: (
            target.parent.mkdir(parents=True) or target.write_bytes(contents[0])
        ),
    )
    with pytest.raises(SourceError, match="expected"):
        fetch.fetch(pinned, tmp_path)
