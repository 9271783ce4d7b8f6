"""Real speech: Asterisk's core prompts, one studio voice, with exact transcripts (Debian packages)."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from muomni.data.sources.fetch import Package, build_tool, fetch

VOICE = "Asterisk core sounds, Copyright 2003-2010 Allison Smith (theivrvoice.com), financed by Digium, Inc."
SOUNDS = Package(
    registry="debian",
    name="asterisk-core-sounds-en-g722",
    version="1.6.1-1",
    sha256="38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
    licence="CC-BY-SA-3.0",
    attribution=VOICE,
    gives="recorded English speech (speech.tar), trimmed and re-encoded as Ogg Opus",
)
TEXTS = Package(
    registry="debian",
    name="asterisk-core-sounds-en",
    version="1.6.1-1",
    sha256="973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    licence="CC-BY-SA-3.0",
    attribution=VOICE,
    gives="transcripts of the recordings (speech.tar)",
)
SPEAKER = "allison"
SAMPLE_RATE = 16_000
KEEP_SECONDS = 0.08
"""Silence kept before and after the speech."""

# How "H.323", "extension 1234", "28.8" or "www.asterisk.org" are read aloud cannot be told from the writing.
_AMBIGUOUS = re.compile(r"\d{4}|\d\.\d|[a-z]\.\d|www\.", re.IGNORECASE)


def split_of(text: str) -> str:
    """Split by hash of the normalised text, so that the same sentence never stands in two splits."""
    return {0: "test", 1: "validation"}.get(zlib.crc32(text.encode()) % 20, "train")


def spoken_form(transcript: str) -> str:
    """What is heard: notes in brackets removed, digits and signs as words, lower-case letters only."""
    num2words = build_tool("num2words").num2words
    text = re.sub(r"\[.*?\]|\(.*?\)|<.*?>", " ", transcript.lower())
    text = text.replace("*", " star ").replace("#", " pound ").replace("&", " and ").replace("’", "'")
    text = re.sub(r"\d+", lambda m: f" {num2words(int(m.group()))} ", text)
    text = re.sub(r"[^a-z']+", " ", text.replace("a.m.", "a m").replace("p.m.", "p m"))
    return " ".join(text.split())


def trim(waveform: np.ndarray) -> np.ndarray:
    """Cut silence below -45 dB of the peak at both ends, keeping KEEP_SECONDS."""
    loud = np.flatnonzero(np.abs(waveform) > np.abs(waveform).max() * 10 ** (-45 / 20))
    keep = round(KEEP_SECONDS * SAMPLE_RATE)
    return waveform[max(0, loud[0] - keep) : loud[-1] + keep]


def decode_g722(path: Path) -> np.ndarray:
    """A raw G.722 file as float32 mono at 16 kHz."""
    av: Any = build_tool("av")
    with av.open(str(path), format="g722") as container:
        blocks = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(blocks).astype(np.float32) / 32_768.0


def items(cache: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Records and waveforms of every prompt that is speech and whose transcript says what is heard."""
    sounds = next(fetch(SOUNDS, cache).rglob("en_US_f_Allison"))
    listing = next(fetch(TEXTS, cache).rglob("core-sounds-en.txt.gz"))
    found: list[tuple[dict[str, Any], np.ndarray]] = []
    for line in gzip.decompress(listing.read_bytes()).decode("utf-8", "replace").splitlines():
        key, colon, transcript = line.partition(":")
        path = sounds / f"{key.strip()}.g722"
        if line.startswith(";") or not colon or key.startswith("silence/") or not path.exists():
            continue
        text = spoken_form(transcript)
        if not text or "sound plays" in transcript or _AMBIGUOUS.search(transcript):
            continue
        waveform = trim(decode_g722(path))
        record = {
            "id": f"asterisk/{key.strip()}",
            "text": text,
            "raw_text": transcript.strip(),
            "speaker": SPEAKER,
            "synthetic": False,
            "split": split_of(text),
            "n_samples": len(waveform),
        }
        found.append((record, waveform))
    return found
