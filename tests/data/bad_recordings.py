"""Recordings that must be refused: what is wrong -> (a part of the reason, how the file is made)."""

from __future__ import annotations

import functools
import gzip
import io
import json
import struct
from collections.abc import Callable

import media_files as made
import numpy as np
import soundfile

Case = tuple[str, Callable[[], bytes]]


def _wav(data: bytes = bytes(8_000), **fmt: int) -> bytes:
    return made.riff([made.wav_format(**fmt), (b"data", data)])


def _floats(*values: float, n: int = 4_000) -> bytes:
    samples = made.tone(n)
    samples[n // 2 : n // 2 + len(values)] = values
    return made.sound(samples, subtype="FLOAT")


def _late_nan() -> bytes:
    """Just below the bound on PCM, with its only fault in the last sample."""
    samples = np.zeros(2**24 - 2_000, "<f4")
    samples[-1] = np.nan
    return made.riff([made.wav_format(bits=32, tag=3), (b"data", samples.tobytes())])


@functools.cache
def _flac_bomb() -> bytes:
    """8 channels of nothing: 14.7 million frames, 469 MB of PCM."""
    file, block = io.BytesIO(), np.zeros((2**16, 8), np.int16)
    with soundfile.SoundFile(file, "w", 16_000, 8, "PCM_16", format="FLAC") as flac:
        for _ in range(224):
            flac.write(block)
    return file.getvalue()


def _mp3_tag(size: int) -> bytes:
    sizes = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\0\0" + sizes + bytes(100)


FLAC = functools.cache(lambda: made.sound(made.tone(60_000), kind="FLAC"))
OGG = functools.cache(lambda: made.sound(made.tone(60_000), kind="OGG"))
OPUS = functools.cache(lambda: made.sound(made.tone(60_000), 48_000, "OGG", "OPUS"))
MP3 = functools.cache(lambda: made.sound(made.tone(60_000), kind="MP3"))
AIFF = functools.cache(lambda: made.sound(made.tone(), kind="AIFF"))
PAD = (b"junk", b"")

CASES: dict[str, Case] = {
    "no bytes": ("is empty", bytes),
    "one byte": ("not a readable recording", lambda: b"R"),
    "text": ("not a readable recording", lambda: b"this is not sound at all\n" * 50),
    "an error page": ("not a readable recording", lambda: b"<!doctype html><title>404</title>"),
    "json": ("not a readable recording", lambda: json.dumps({"error": "gone"}).encode()),
    "a Git LFS pointer": ("not a readable recording", lambda: b"version https://git-lfs.github.com/spec/v1\n"),
    "gzip": ("not a readable recording", lambda: gzip.compress(_wav())),
    "zip": ("not a readable recording", lambda: b"PK\x03\x04" + bytes(200)),
    "mp4": ("not a readable recording", lambda: b"\0\0\0\x20ftypisom" + bytes(500)),
    "zeros": ("not a readable recording", lambda: bytes(2**16)),
    "a picture": ("not a readable recording", made.picture),
    "a WebP picture": ("not a readable recording", lambda: made.picture(kind="WEBP")),
    "au": ("not a readable recording", lambda: made.sound(made.tone(), kind="AU")),
    "caf": ("not a readable recording", lambda: made.sound(made.tone(), kind="CAF")),
    "wave64": ("not a readable recording", lambda: made.sound(made.tone(), kind="W64")),
    "voc": ("not a readable recording", lambda: made.sound(made.tone(), kind="VOC", subtype="PCM_16")),
    "matlab": ("not a readable recording", lambda: made.sound(made.tone(), kind="MAT5")),
    "8svx": ("format SVX", lambda: made.sound(made.tone(), kind="SVX", subtype="PCM_16")),
    "magic alone": ("is cut", lambda: b"RIFF"),
    "half a header": ("is cut, 30 bytes of", lambda: _wav()[:30]),
    "no sound": ("0 seconds", lambda: _wav(b"")),
    "cut wav": ("is cut, 5000 bytes of 8044", lambda: _wav()[:5_000]),
    "no format": ("not a readable recording", lambda: made.riff([(b"data", bytes(800))])),
    "no data": ("not a readable recording", lambda: made.riff([made.wav_format()])),
    "1 Hz": ("1 Hz; expected 8000", lambda: _wav(rate=1)),
    "0 Hz": ("is", lambda: _wav(rate=0)),
    "7,999 Hz": ("7999 Hz", lambda: _wav(rate=7_999)),
    "192,001 Hz": ("192001 Hz", lambda: _wav(rate=192_001)),
    "2^32 - 1 Hz": (": ", lambda: _wav(rate=2**32 - 1)),
    "1,024 channels": ("1024 channels", lambda: _wav(channels=1_024)),
    "9 channels": ("9 channels", lambda: _wav(channels=9)),
    "0 channels": ("not a readable recording", lambda: _wav(channels=0)),
    "0 bits": ("not a readable recording", lambda: _wav(bits=0)),
    "7 bits of nothing": (": ", lambda: _wav(b"", bits=7)),
    "unknown coding": ("not a readable recording", lambda: _wav(tag=0x4242)),
    "data longer than the file": (
        "is cut", lambda: _wav().replace(b"data" + struct.pack("<I", 8_000), b"data" + struct.pack("<I", 2**24)),
    ),
    "longer than the file": ("is cut", lambda: b"RIFF" + struct.pack("<I", 2**30) + _wav()[8:]),
    "RF64 longer than the file": (
        "is cut",
        lambda: made.riff([(b"ds64", struct.pack("<QQQI", 2**40, 2**40, 2**39, 0)), made.wav_format(),
                           (b"data", bytes(800))], magic=b"RF64").replace(
            b"data" + struct.pack("<I", 800), b"data" + b"\xff" * 4),
    ),
    "3,000 empty chunks": ("2000 chunks", lambda: made.riff([made.wav_format(), *[PAD] * 3_000])),
    "NaN": ("not finite", lambda: _floats(np.nan)),
    "infinity": ("not finite", lambda: _floats(np.inf)),
    "minus infinity": ("not finite", lambda: _floats(-np.inf)),
    "NaN everywhere": ("not finite", lambda: made.sound(np.full(500, np.nan), subtype="DOUBLE")),
    "NaN at the end of 64 MiB": ("not finite", _late_nan),
    "whole numbers as floats": ("up to 32767; expected", lambda: _floats(32_767.0)),
    "1e38": ("expected about -1 to 1", lambda: _floats(-1e38)),
    "65 MiB of PCM": ("more than 64 MiB", lambda: _wav(bytes(65 * 2**19))),
    "too short to resample": ("too short", lambda: _wav(bytes(2), rate=192_000)),
    "cut aiff": ("is cut", lambda: AIFF()[:3_000]),
    "aiff at 1 Hz": ("Hz; expected", lambda: made.sound(made.tone(), 1, "AIFF")),
    "aiff data longer than the file": (
        "is cut", lambda: AIFF().replace(b"SSND" + struct.pack(">I", 8_008), b"SSND" + struct.pack(">I", 2**30)),
    ),
    "flac asking for 256 GiB": ("does not state its length|more than 64", lambda: made.flac_total(FLAC(), 2**36 - 1)),
    "flac asking for 128 GiB": ("more than 64 MiB", lambda: made.flac_total(FLAC(), 2**35)),
    "flac bomb, 469 MB": ("more than 64 MiB", _flac_bomb),
    "flac bomb that states 1 s": ("bytes follow", lambda: made.flac_total(_flac_bomb(), 16_000)),
    "flac bomb that states 2^20": ("bytes follow", lambda: made.flac_total(_flac_bomb(), 2**20)),
    "flac of no stated length": ("does not state its length", lambda: made.flac_total(FLAC(), 0)),
    "flac stating too much": ("", lambda: made.flac_total(FLAC(), 60_001)),
    "flac stating too little": ("bytes follow", lambda: made.flac_total(FLAC(), 100)),
    "cut flac": ("not a readable recording", lambda: FLAC()[: len(FLAC()) * 2 // 3]),
    "flac magic alone": ("not a readable recording", lambda: b"fLaC"),
    "flac of 3,000 blocks": ("2000 blocks", lambda: FLAC()[:42] + b"\x01\0\0\0" * 3_000 + FLAC()[42:]),
    "cut ogg": ("is cut", lambda: OGG()[: len(OGG()) // 2]),
    "ogg without its last page": ("is cut", lambda: b"".join(made.ogg_pages(OGG())[:-1])),
    "ogg with headers alone": ("is cut|0 seconds|not a readable", lambda: b"".join(made.ogg_pages(OGG())[:2])),
    "ogg stating 10^7 samples": ("is cut, 60", lambda: made.ogg_granule(OGG(), 10**7)),
    "ogg stating 2^62 samples": ("does not state its length", lambda: made.ogg_granule(OGG(), 2**62)),
    "ogg stating 1,000 samples": ("bytes follow", lambda: made.ogg_granule(OGG(), 1_000)),
    "ogg of pages of nothing": (
        "", lambda: b"".join(made.ogg_page(i, [b""], flags=4 * (i == 9_999)) for i in range(10_000)),
    ),
    "ogg of something else": ("not a readable", lambda: made.ogg_page(0, [b"\x80theora" + bytes(35)], flags=6)),
    "opus bomb, 1.35 GB": ("more than 64 MiB", lambda: made.opus_silence(1_380)),
    "opus bomb that states 1 s": ("bytes follow", lambda: made.ogg_granule(made.opus_silence(1_380), 48_000)),
    "cut opus": ("is cut", lambda: OPUS()[: len(OPUS()) // 2]),
    "mp3 stating 2^31 frames": ("more than 64 MiB|does not state", lambda: made.mp3_stated(MP3(), 2**31 - 1)),
    "mp3 stating 10 frames": ("bytes follow", lambda: made.mp3_stated(MP3(), 10)),
    "mp3 stating 10,000 frames": ("is cut", lambda: made.mp3_stated(MP3(), 10_000)),
    "cut mp3": ("is cut", lambda: MP3()[: len(MP3()) // 2]),
    "mp3 tag alone": ("not a readable recording", lambda: _mp3_tag(100)),
    "mp3 tag longer than the file": ("not a readable recording", lambda: _mp3_tag(2**28 - 1)),
    "mp3 sync then nothing": ("not a readable recording", lambda: b"\xff\xfb\x90\x00" + bytes(2_000)),
}  # fmt: skip
