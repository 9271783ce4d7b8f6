"""Films made in code: each second has a colour of its own, and a tone sounds in one second of it. Needs PyAV."""

from __future__ import annotations

import functools
import io
from typing import Any

import av
import numpy as np

COLOURS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (220, 220, 30), (30, 200, 200), (200, 40, 200))
"""Of each second; they begin anew after the last."""
TONE_HZ, TONE_FROM, TONE_TO = 440, 1.0, 2.0


def frame_of(index: int, rate: int, *, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: the colour of its second, darker in its right half."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = COLOURS[index // rate % len(COLOURS)]
    pixels[:, width // 2 :] //= 2
    return pixels


def film(
    kind: str = "mp4",
    video: str = "libx264",
    audio: str | None = "aac",
    *,
    seconds: float = 4.0,
    rate: int = 10,
    width: int = 64,
    height: int = 48,
    pixels: str = "yuv420p",
    sound_format: str = "fltp",
    sample_rate: int = 48_000,
    sound_from: float = 0.0,
    rotation: int = 0,
    gop: int = 10,
    muxer: dict[str, str] | None = None,
) -> bytes:
    """A film as the bytes of a file, the same every time. video: "" for a file of sound alone."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options={"fflags": "+bitexact", **(muxer or {})}) as output:
        pictures: Any = output.add_stream(video, rate=rate) if video else None
        if pictures is not None:
            pictures.width, pictures.height, pictures.pix_fmt = width, height, pixels
            pictures.codec_context.gop_size, pictures.codec_context.thread_count = gop, 1
            if rotation:
                pictures.set_display_rotation(rotation)
        track: Any = output.add_stream(audio, rate=sample_rate, layout="mono") if audio else None
        for index in range(round(seconds * rate) if video else 0):
            frame = av.VideoFrame.from_ndarray(
                frame_of(index, rate, width=width, height=height), format="rgb24"
            )
            frame = frame.reformat(format=pixels)
            frame.pts = index
            output.mux(pictures.encode(frame))
        if video:
            output.mux(pictures.encode())
        if track is not None:
            _write_tone(output, track, seconds, sound_format, sample_rate, sound_from)
    return file.getvalue()


def _write_tone(output: Any, track: Any, seconds: float, form: str, sample_rate: int, start: float) -> None:
    time = np.arange(round(start * sample_rate), round(seconds * sample_rate)) / sample_rate
    tone = 0.5 * np.sin(2 * np.pi * TONE_HZ * time) * ((time >= TONE_FROM) & (time < TONE_TO))
    samples = tone.astype(np.float32) if form == "fltp" else np.round(tone * 32_767).astype(np.int16)
    for at in range(0, len(samples), 960):
        block = av.AudioFrame.from_ndarray(samples[None, at : at + 960], format=form, layout="mono")
        block.sample_rate, block.pts = sample_rate, round(start * sample_rate) + at
        output.mux(track.encode(block))
    output.mux(track.encode())


KINDS: dict[str, dict[str, Any]] = {
    "mp4 h264 aac": {},
    "mp4 in fragments": {"muxer": {"movflags": "frag_keyframe+delay_moov"}},
    "mp4 mpeg4 aac": {"video": "mpeg4"},
    "mov mjpeg pcm": {
        "kind": "mov", "video": "mjpeg", "audio": "pcm_s16le", "pixels": "yuvj420p", "sound_format": "s16",
    },
    "mkv h264 flac": {"kind": "matroska", "audio": "flac", "sound_format": "s16"},
    "webm vp8 opus": {"kind": "webm", "video": "libvpx", "audio": "libopus", "sound_format": "s16"},
    "webm vp9 opus": {"kind": "webm", "video": "libvpx-vp9", "audio": "libopus", "sound_format": "s16"},
    "mkv without a length": {"kind": "matroska", "audio": "pcm_s16le", "sound_format": "s16", "muxer": {"live": "1"}},
    "gif": {"kind": "gif", "video": "gif", "audio": None, "pixels": "rgb8"},
    "mp4 without sound": {"audio": None},
}  # fmt: skip


@functools.cache
def good_films() -> dict[str, bytes]:
    """A film of four seconds of every kind that is admitted."""
    return {name: film(**how) for name, how in KINDS.items()}


@functools.cache
def small_films() -> dict[str, bytes]:
    """The same with half the pixels and 8,000 Hz or what the coder can, for mutants."""
    return {
        name: film(**{"width": 32, "height": 32, "rate": 5, "seconds": 2.0, "gop": 5, **how})
        for name, how in KINDS.items()
    }
