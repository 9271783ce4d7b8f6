"""Real speech: Asterisk's core prompts in five languages, studio voices, with exact transcripts (Debian packages)."""

from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from num2words import num2words

from muomni.data.media import MediaError
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import Package, build_tool, fetch
from muomni.data.sources.sound import encode_flac, trim
from muomni.data.splits import split_of

VOICE = "Asterisk core sounds, Copyright 2003-2010 Allison Smith (theivrvoice.com), financed by Digium, Inc."
SOUNDS = Package(
    registry="debian",
    name="asterisk-core-sounds-en-g722",
    version="1.6.1-1",
    n_bytes=10_565_860,
    sha256="38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
    licence="CC-BY-SA-3.0",
    attribution=VOICE,
    gives="recorded English speech (speech.tar), trimmed and re-encoded as Ogg Opus",
)
TEXTS = Package(
    registry="debian",
    name="asterisk-core-sounds-en",
    version="1.6.1-1",
    n_bytes=22_844,
    sha256="973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    licence="CC-BY-SA-3.0",
    attribution=VOICE,
    gives="transcripts of the recordings (speech.tar)",
)
SPEAKER = "allison"

# How "H.323", "extension 1234", "28.8" or "www.asterisk.org" are read aloud cannot be told from the writing.
_AMBIGUOUS = re.compile(r"\d{4}|\d\.\d|[a-z]\.\d|www\.", re.IGNORECASE)


def spoken_form(transcript: str) -> str:
    """What is heard: notes in brackets removed, digits and signs as words, lower-case letters only."""
    text = re.sub(r"\[.*?\]|\(.*?\)|<.*?>", " ", transcript.lower())
    text = text.replace("*", " star ").replace("#", " pound ").replace("&", " and ").replace("’", "'")
    text = re.sub(r"\d+", lambda m: f" {num2words(int(m.group()))} ", text)
    text = re.sub(r"[^a-z']+", " ", text.replace("a.m.", "a m").replace("p.m.", "p m"))
    return " ".join(text.split())


def decode_g722(path: Path) -> np.ndarray:
    """A raw G.722 file as float32 mono at 16 kHz. Raises MediaError when it is none."""
    av: Any = build_tool("av")
    try:
        with av.open(str(path), format="g722") as container:
            blocks = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    except av.FFmpegError as error:
        raise MediaError(f"{path}: is not G.722 ({error}); fetch its package again.") from None
    return np.concatenate(blocks).astype(np.float32) / 32_768.0


def _prompts(sounds: Path, listing: Path) -> Iterator[tuple[str, str, Path]]:
    """(key, transcript as written, file) of every prompt that is there, silence left out."""
    for line in gzip.decompress(listing.read_bytes()).decode("utf-8-sig", "replace").splitlines():
        key, colon, transcript = line.partition(":")
        path = sounds / f"{key.strip()}.g722"
        if not line.startswith(";") and colon and not key.startswith("silence/") and path.exists():
            yield key.strip(), transcript.strip(), path


def items(cache: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Records and waveforms of every English prompt that is speech and whose transcript says what is heard."""
    sounds = next(fetch(SOUNDS, cache).rglob("en_US_f_Allison"))
    listing = next(fetch(TEXTS, cache).rglob("core-sounds-en.txt.gz"))
    found: list[tuple[dict[str, Any], np.ndarray]] = []
    for key, transcript, path in _prompts(sounds, listing):
        text = spoken_form(transcript)
        if not text or "sound plays" in transcript or _AMBIGUOUS.search(transcript):
            continue
        waveform = trim(decode_g722(path))
        record = {
            "id": f"asterisk/{key}",
            "text": text,
            "raw_text": transcript,
            "speaker": SPEAKER,
            "synthetic": False,
            "split": split_of("speech", text),
            "n_samples": len(waveform),
        }
        found.append((record, waveform))
    return found


def flac_of(path: Path) -> bytes:
    """A prompt as FLAC, silence trimmed. Raises MediaError for one without sound."""
    waveform = decode_g722(path)
    if not np.abs(waveform).max() > 0:
        raise MediaError(f"{path.name}: is silent; expected speech.")
    return encode_flac(trim(waveform))


def letters(transcript: str, language: str) -> str:
    """What is heard in a language other than English: notes removed, numbers as words, letters and apostrophes."""
    text = re.sub(r"\[.*?\]|\(.*?\)|<.*?>", " ", transcript.lower()).replace("’", "'")
    text = re.sub(r"\d+", lambda m: f" {num2words(int(m.group()), lang=language)} ", text)
    return " ".join("".join(c if c.isalpha() or c == "'" else " " for c in text).split())


def _find(cache: Path, *, sounds: Package, texts: Package, voice: str, language: str) -> Iterator[Found]:
    folder = next(fetch(sounds, cache).rglob(voice))
    listing = next(fetch(texts, cache).rglob("core-sounds-*.txt.gz"))
    name = "asterisk" if language == "en" else f"asterisk-{language}"
    # Notes such as [ascending tones], and the longest one, a whole song, are no speech.
    for key, transcript, path in _prompts(folder, listing):
        text = spoken_form(transcript) if language == "en" else letters(transcript, language)
        if not text or "sound plays" in transcript or _AMBIGUOUS.search(transcript):
            continue
        yield Found(
            kind="speech", id=f"{name}/{key}", group=text, payload=functools.partial(flac_of, path), suffix=".flac",
            fields={"text": text, "raw_text": transcript, "speaker": SPEAKERS[language], "synthetic": False,
                    "language": language},
        )  # fmt: skip


SPEAKERS = {"en": SPEAKER, "es": "allison (spanish)", "fr": "june", "it": "carlo", "ru": "ivrvoice"}


def _debian(name: str, sha256: str, n_bytes: int, licence: str, attribution: str, gives: str) -> Package:
    return Package(
        registry="debian", name=name, version="1.6.1-1", sha256=sha256, licence=licence, attribution=attribution,
        gives=gives, n_bytes=n_bytes,
    )  # fmt: skip


def _adapter(language: str, title: str, voice: str, sounds: Package, texts: Package) -> Adapter:
    return Adapter(
        name="asterisk" if language == "en" else f"asterisk-{language}", title=title,
        licence=sounds.licence,
        stages=("audio", "codec", "vocoder", "omni", "talker") if language == "en" else ("codec", "vocoder"),
        packages=(sounds, texts), version=2,
        find=functools.partial(_find, sounds=sounds, texts=texts, voice=voice, language=language),
    )  # fmt: skip


_OTHERS = {
    "es": ("Asterisk prompts in Spanish, one woman", "es_MX_f_Allison", "CC-BY-SA-3.0", VOICE,
           "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8", 13_048_380,
           "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74", 22_012),
    "fr": ("Asterisk prompts in French, one woman", "fr_CA_f_June", "CC-BY-SA-3.0",
           "Asterisk core sounds, Copyright 2006-2008 June Wallack",
           "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0", 10_822_860,
           "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056", 23_152),
    "it": ("Asterisk prompts in Italian, one man", "it_IT_m_Carlo", "CC-BY-3.0",
           "Asterisk core sounds, Copyright 2012 Carlo Flora (carloflora.com)",
           "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016", 10_087_176,
           "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b", 23_972),
    "ru": ("Asterisk prompts in Russian, one woman", "ru_RU_f_IvrvoiceRU", "CC-BY-3.0",
           "Asterisk core sounds, Copyright 2010 Maxim (ivrvoice.ru)",
           "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b", 10_579_440,
           "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab", 25_592),
}  # fmt: skip
ADAPTERS: tuple[Adapter, ...] = (
    _adapter("en", "Asterisk prompts in English, one woman", "en_US_f_Allison", SOUNDS, TEXTS),
    *(
        _adapter(
            language, title, voice,
            _debian(f"asterisk-core-sounds-{language}-g722", sha, size, licence, by, "recorded speech"),
            _debian(f"asterisk-core-sounds-{language}", text_sha, text_size, licence, by, "transcripts"),
        )
        for language, (title, voice, licence, by, sha, size, text_sha, text_size) in _OTHERS.items()
    ),
)  # fmt: skip
