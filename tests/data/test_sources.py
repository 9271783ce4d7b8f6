"""The builders of the embedded set: pinned packages only, honest transcripts, the same bytes every time."""

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from muomni.data import embedded
from muomni.data.media import read_audio
from muomni.data.sources import chitchat, embed, emoji, fetch
from muomni.data.sources.fetch import Package, SourceError
from muomni.data.sources.ogg import page_checksum, with_serial
from muomni.data.sources.sound import encode_opus, trim
from muomni.data.splits import split_of


def wheel(content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("pinned_voice/__init__.py", content)
    return buffer.getvalue()


def package(payload: bytes, cache: Path, *, sha256: str | None = None) -> Package:
    """A package whose archive already lies in the cache, as after a download."""
    digest = sha256 or hashlib.sha256(payload).hexdigest()
    folder = cache / "pypi-pinned-voice-1.0" / "archive"
    folder.mkdir(parents=True)
    (folder / "pinned_voice-1.0-py3-none-any.whl").write_bytes(payload)
    return Package(
        registry="pypi",
        name="pinned-voice",
        version="1.0",
        sha256=digest,
        licence="MIT",
        attribution="x",
        gives="y",
    )


@pytest.mark.parametrize("cache", ["absolute", "relative"])
def test_a_cached_package_is_unpacked_and_used_in_place(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "pinned_voice", raising=False)
    source = package(wheel("NAME = 'pinned'"), tmp_path)
    folder = fetch.fetch(source, tmp_path if cache == "absolute" else Path())
    tool = fetch.build_tool("pinned_voice", folder=folder)
    assert tool.NAME == "pinned"
    assert str(tmp_path) not in sys.path
    with pytest.raises(SourceError, match="not from the pinned package"):
        fetch.build_tool("json", folder=tmp_path)


def test_another_archive_than_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = package(wheel("NAME = 'changed'"), tmp_path, sha256="0" * 64)
    monkeypatch.setattr(fetch, "_client", lambda _: ["touch", "another-1.0-py3-none-any.whl"])
    with pytest.raises(SourceError, match=r"SHA-256 e3b0c442.*expected 0000"):
        fetch.fetch(source, tmp_path)


@pytest.mark.parametrize(
    ("client", "expected"), [(["no-such-client"], "needs no-such-client"), (["false"], "false failed")]
)
def test_a_missing_or_failing_client_is_one_line(
    client: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = package(b"", tmp_path, sha256="0" * 64)
    monkeypatch.setattr(fetch, "_client", lambda _: client)
    with pytest.raises(SourceError, match=expected) as error:
        fetch.fetch(source, tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_tool_names_the_extra() -> None:
    with pytest.raises(SourceError, match=r"muomni\[data\]"):
        fetch.build_tool("no_such_tool_of_ours")


def test_the_manifest_names_exactly_the_pinned_packages() -> None:
    assert embedded.manifest()["sources"] == [vars(source) for source in embed.PACKAGES]
    assert embedded.attribution() == embed.attribution()


def test_splits_follow_the_builders_rules() -> None:
    for split in ("train", "validation", "test"):
        assert all(split_of("speech", item.text) == split for item in embedded.SET.speech(split))
        assert all(split_of("conversations", item.id) == split for item in embedded.SET.conversations(split))


def test_concepts_ignore_who_is_drawn_and_where_it_faces() -> None:
    walking = ["1F6B6", "1F6B6-200D-2642-FE0F", "1F6B6-200D-2640-FE0F-200D-27A1-FE0F"]
    assert {emoji.concept_of(code) for code in walking} == {"1F6B6"}
    assert emoji.concept_of("1F468-200D-1F680") == emoji.concept_of("1F9D1-200D-1F680") == "1F680"
    assert emoji.concept_of("1F1F3-1F1F4") != emoji.concept_of("1F1F8-1F1EF")


@pytest.mark.parametrize(
    ("utterance", "expected"), [("it’s  “fine”…\n", 'it\'s "fine"...'), ("no 😀 faces", "no faces")]
)
def test_utterances_become_one_plain_line(utterance: str, expected: str) -> None:
    assert chitchat.clean(utterance) == expected


def test_trimming_keeps_80_ms_around_the_sound() -> None:
    waveform = np.zeros(32_000, np.float32)
    waveform[10_000:12_000] = 0.5
    assert len(trim(waveform)) == pytest.approx(2_000 + 2 * 1_280, abs=1)


def test_encoding_twice_gives_equal_bytes_that_decode_to_the_sound() -> None:
    tone = (0.4 * np.sin(np.arange(16_000) * 0.2)).astype(np.float32)
    payload = encode_opus(tone)
    assert payload == encode_opus(tone)
    decoded = read_audio(payload)
    assert len(decoded) == len(tone)
    assert np.corrcoef(decoded, tone)[0, 1] > 0.95


def test_page_checksum_is_the_one_libogg_writes() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(4_000, np.float32), 16_000, format="OGG", subtype="OPUS")
    written = buffer.getvalue()
    size = 27 + written[26] + sum(written[27 : 27 + written[26]])
    page = written[:22] + bytes(4) + written[26:size]
    assert page_checksum(page) == int.from_bytes(written[22:26], "little")
    serial = int.from_bytes(written[14:18], "little")
    assert with_serial(with_serial(written, 1), serial) == written
    with pytest.raises(ValueError, match="no Ogg page at byte"):
        with_serial(written + b"tail", 1)
