"""Films that must be refused: what is wrong -> (a part of the reason, how the file is made). Needs PyAV."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import av
import film_files as made
import media_files

Case = tuple[str, Callable[[], bytes]]


def _mp4() -> bytes:
    return made.good_films()["mp4 h264 aac"]


def _mkv() -> bytes:
    return made.good_films()["mkv h264 flac"]


def _patched(data: bytes, mark: bytes, place: int, value: bytes) -> bytes:
    at = data.index(mark) + place
    return data[:at] + value + data[at + len(value) :]


def _stated(mkv: bytes, milliseconds: float) -> bytes:
    """An MKV whose header states another duration."""
    return _patched(mkv, b"\x44\x89\x88", 3, struct.pack(">d", milliseconds))


def _noise_within(data: bytes, mark: bytes) -> bytes:
    at = data.index(mark) + 40
    return data[:at] + bytes((i * 37) % 251 for i in range(len(data) // 2)) + data[at + len(data) // 2 :]


def _remuxed(kind: str, *, rate: int) -> bytes:
    """One picture every `rate` seconds: a film of days."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as output:
        stream = output.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for index in range(4):
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts = index
            for packet in stream.encode(frame):
                packet.pts = packet.dts = index * rate * round(1 / packet.time_base)
                output.mux(packet)
        output.mux(stream.encode())
    return file.getvalue()


def _playlist() -> bytes:
    return b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n"


CASES: dict[str, Case] = {
    "no bytes": ("is empty", bytes),
    "one byte": ("not a readable film", lambda: b"\0"),
    "text": ("not a readable film", lambda: b"a film\n" * 100),
    "a playlist that names another file": ("not a readable film", _playlist),
    "a list of files to join": ("not a readable film", lambda: b"ffconcat version 1.0\nfile /etc/passwd\n"),
    "a picture": ("not a readable film", media_files.picture),
    "a recording": ("not a readable film", lambda: media_files.sound(media_files.tone())),
    "an avi": ("not a readable film", lambda: made.film("avi", "mpeg4", None, seconds=1.0)),
    "an mp4 of sound alone": ("no moving pictures", lambda: made.film("mp4", "", "aac", seconds=1.0)),
    "an mkv of sound alone": ("no moving pictures", lambda: made.film("matroska", "", "aac", seconds=1.0)),
    "an mp4 cut in its header": ("cut", lambda: _mp4()[: _mp4().index(b"moov") + 60]),
    "an mp4 cut in its pictures": ("cut", lambda: _mp4()[: _mp4().index(b"mdat") + 60]),
    "an mp4 without its header": ("cut", lambda: _mp4()[: _mp4().index(b"moov") - 4]),
    "an mkv cut in the middle": ("cut", lambda: _mkv()[: len(_mkv()) // 2]),
    "an mkv of its first bytes": ("damaged|cut", lambda: _mkv()[:20]),
    "a gif cut in the middle": ("cut", lambda: made.good_films()["gif"][:-400]),
    "an mkv that states ten times its length": ("cut, 4.0. s of 40", lambda: _stated(_mkv(), 40_000)),
    "an mp4 of two billion samples": (
        "more than 1,048,576", lambda: _patched(_mp4(), b"stsz", 12, b"\x7f\xff\xff\xff")
    ),
    "an mp4 of two billion samples of one byte": (
        "samples of 1 bytes", lambda: _patched(_mp4(), b"stsz", 8, b"\0\0\0\1\x7f\xff\xff\xff")
    ),
    "a fragment of two billion samples": (
        "more than 1,048,576",
        lambda: _patched(made.good_films()["mp4 in fragments"], b"trun", 8, b"\x7f\xff\xff\xff"),
    ),
    "an mp4 with a packed header": ("packed header", lambda: _mp4().replace(b"udta", b"cmov")),
    "an mp4 with a box of four bytes": ("damaged", lambda: _mp4() + b"\0\0\0\4free"),
    "an mp4 of thousands of boxes": ("more than 2000", lambda: b"\0\0\0\x08free" * 3_000 + _mp4()),
    "an mp4 whose pictures are noise": ("broken film|damaged", lambda: _noise_within(_mp4(), b"mdat")),
    "a codec that is not admitted": ("coded as ffv1", lambda: made.film("matroska", "ffv1", None, seconds=1.0)),
    "sound that is not admitted": ("coded as ac3", lambda: made.film("matroska", audio="ac3", seconds=1.0)),
    "a film of days": ("s; at most 3600 s", lambda: _remuxed("matroska", rate=50_000)),
    "an mp4 of too many pixels": (
        "megapixels|broken film",
        lambda: made.film("mov", "mjpeg", None, seconds=0.1, width=4_800, height=3_600, pixels="yuvj420p"),
    ),
    "sound of 4,000 Hz": (
        "4000 Hz",
        lambda: made.film("mov", "mpeg4", "pcm_s16le", sound_format="s16", sample_rate=4_000, seconds=1.0),
    ),
}  # fmt: skip
