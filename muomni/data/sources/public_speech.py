"""Speech corpora that people with a network use: LibriSpeech, LJSpeech, Common Voice, VoiceAssistant-400K."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from pathlib import Path

from muomni.data.items import Split
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.asterisk import spoken_form
from muomni.data.sources.download import given
from muomni.data.sources.fetch import Package, SourceError, fetch
from muomni.data.sources.hub import parquet_rows

_SPEECH = ("audio", "codec", "vocoder", "talker", "omni")


def _libri(part: str, sha256: str, n_bytes: int = 0) -> Package:
    return Package(
        registry="url", name=f"https://www.openslr.org/resources/12/{part}.tar.gz", version="1", sha256=sha256,
        licence="CC-BY-4.0", attribution="LibriSpeech, Panayotov et al., 2015 (openslr.org/12)", n_bytes=n_bytes,
        gives="read speech with transcripts",
    )  # fmt: skip


LIBRISPEECH: dict[Split, Package] = {
    "train": _libri(
        "train-clean-100", "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2", 6_387_309_499
    ),
    "validation": _libri("dev-clean", "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "test": _libri("test-clean", "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
}
LJSPEECH = Package(
    registry="url", name="https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2", version="1.1",
    sha256="be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5", licence="public domain",
    attribution="The LJ Speech Dataset, Keith Ito and Linda Johnson, 2017", gives="read speech, one woman",
    n_bytes=2_748_572_632,
)  # fmt: skip
VOICE_ASSISTANT = Package(
    registry="hub", name="gpt-omni/VoiceAssistant-400K", version="65dab707fcdd3d43dcfb834398aa9fed4116be3a", sha256="",
    licence="Apache-2.0", attribution="Mini-Omni, Xie and Wu, 2024", gives="spoken questions",
)  # fmt: skip
VOICE_ASSISTANT_ROWS = 20_000
"""Of 470,054, whose audio takes 219 GB."""


def _file(path: Path) -> bytes:
    return path.read_bytes()


def _librispeech(cache: Path) -> Iterator[Found]:
    """The official splits; a speaker is in one of them."""
    for split, package in LIBRISPEECH.items():
        folder = fetch(package, cache)
        for listing in sorted(folder.rglob("*.trans.txt")):
            for line in listing.read_text(encoding="utf-8").splitlines():
                key, _, said = line.partition(" ")
                path = listing.with_name(f"{key}.flac")
                if not path.is_file():
                    raise SourceError(f"{path}: its transcript is there, it is not; fetch LibriSpeech again.")
                text = spoken_form(said)
                yield Found(
                    kind="speech", id=f"librispeech/{key}", group=text, split=split, suffix=".flac",
                    payload=functools.partial(_file, path),
                    fields={"text": text, "raw_text": said, "speaker": key.split("-")[0], "synthetic": False},
                )  # fmt: skip


def _ljspeech(cache: Path) -> Iterator[Found]:
    """The normalised transcript, in which numbers are words; the one as written beside it."""
    folder = next(fetch(LJSPEECH, cache).rglob("metadata.csv")).parent
    for line in (folder / "metadata.csv").read_text(encoding="utf-8").splitlines():
        key, written, read = line.split("|")
        text = spoken_form(read)
        yield Found(
            kind="speech", id=f"ljspeech/{key}", group=text, suffix=".wav",
            payload=functools.partial(_file, folder / "wavs" / f"{key}.wav"),
            fields={"text": text, "raw_text": written, "speaker": "linda", "synthetic": False},
        )  # fmt: skip


def _common_voice(cache: Path) -> Iterator[Found]:
    """The official splits of validated English clips; who is heard is in one of them."""
    folder = given(
        cache, "common-voice", what="its English archive (with train.tsv and clips/)",
        origin="https://commonvoice.mozilla.org/datasets, whose terms you accept there,",
    )  # fmt: skip
    listings: dict[Split, str] = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
    base = next((path.parent for path in sorted(folder.rglob("train.tsv"))), None)
    if base is None:
        raise SourceError(f"{folder}: has no train.tsv; unpack the whole archive there.")
    for split, name in listings.items():
        with (base / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                text = spoken_form(row["sentence"])
                if text:
                    yield Found(
                        kind="speech", id=f"common-voice/{Path(row['path']).stem}", group=text, split=split,
                        suffix=".mp3", payload=functools.partial(_file, base / "clips" / Path(row["path"]).name),
                        fields={"text": text, "raw_text": row["sentence"], "speaker": row["client_id"][:16],
                                "synthetic": False},
                    )  # fmt: skip


def _voice_assistant(cache: Path) -> Iterator[Found]:
    """Spoken questions with written answers; the questions are synthetic speech."""
    rows = parquet_rows(
        VOICE_ASSISTANT, cache, columns=("index", "round", "question", "question_audio", "answer")
    )
    for number, row in enumerate(rows):
        if number == VOICE_ASSISTANT_ROWS:
            return
        audio = row["question_audio"]["bytes"] or b""
        text = spoken_form(row["question"])
        if text and row["answer"]:
            yield Found(
                kind="questions", id=f"voice-assistant/{number:06d}", group=text, suffix=".wav", payload=audio,
                fields={"text": text, "kind": "free", "voice": "unknown", "synthetic": True, "answer": row["answer"]},
            )  # fmt: skip


ADAPTERS: tuple[Adapter, ...] = (
    Adapter(
        name="librispeech", title="read speech of 100 h, 251 speakers, official splits", stages=_SPEECH,
        licence="CC-BY-4.0", packages=tuple(LIBRISPEECH.values()), find=_librispeech,
    ),
    Adapter(
        name="ljspeech", title="read speech of 24 h, one woman", stages=_SPEECH, licence="public domain",
        packages=(LJSPEECH,), find=_ljspeech,
    ),
    Adapter(
        name="common-voice", title="people reading sentences; download it yourself", stages=_SPEECH, licence="CC0-1.0",
        find=_common_voice,
    ),
    Adapter(
        name="voice-assistant", title="spoken questions with answers", stages=("omni",), licence="Apache-2.0",
        packages=(VOICE_ASSISTANT,), find=_voice_assistant,
    ),
)  # fmt: skip
