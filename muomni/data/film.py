"""Films (mp4, mov, webm, mkv, gif) -> a few evenly spaced frames and the sound track, through PyAV: part of the gate.

The container's format is told by its first bytes and its tables are checked before FFmpeg sees it (containers.py); only
the codecs listed here are opened; one pass over the packets, none of them decoded, says how long the film really is and
where its key frames are, so that what has to be decoded for the frames that are wanted is known and bounded before.
"""

from __future__ import annotations

import bisect
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import soxr
from PIL import Image

from muomni.data.containers import film_format
from muomni.data.media import (
    MAX_AMPLITUDE,
    MAX_CHANNELS,
    MAX_PCM_BYTES,
    MAX_PIXELS,
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
    MediaError,
    Source,
    flatten,
    name_of,
    open_source,
)

VIDEO_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "prores", "gif"})
AUDIO_CODECS = frozenset({
    "aac", "mp3", "mp3float", "opus", "libopus", "vorbis", "flac", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le",
    "pcm_s24be", "pcm_s32le", "pcm_f32le",
})  # fmt: skip
MAX_FILM_SECONDS = 3_600
MAX_STREAMS = 16
MAX_PACKETS = 500_000
"""Of pictures and sound together; an hour has about half."""
MAX_DECODED_PIXELS = 2**34
"""Of all pictures that are decoded to get at the wanted ones: eight times 1,000 pictures of 1080p."""
MAX_SIDE = 1_024
"""Pixels of a kept frame's longer side; a larger one is made smaller before the next is decoded."""
GAP_SECONDS = 0.1
"""A hole in the sound track from which on it is filled with silence, so that the rest stays at its time."""
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""Degrees counterclockwise, as the display matrix gives them."""


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a film and its sound track, both timed from the film's beginning."""

    frames: Sequence[Image.Image | np.ndarray]
    """RGB pictures, or (H, W, 3) uint8."""
    frame_times: Sequence[float]
    """Seconds at which each is seen, in order."""
    waveform: np.ndarray | None = None
    """(n_samples,) float at the model's sample rate, from 0 s on; None without sound."""
    seconds: float | None = None
    """How long the film is; None: until its last frame, or until its sound ends if that is later."""
    sound_seconds: float | None = None
    """When its sound track ends, of which waveform may be a beginning; None: with waveform."""


class _Key(NamedTuple):
    """A picture that can be decoded without the ones before it."""

    time: Fraction
    places: tuple[int, int]
    """What to seek to, in the stream's time base: when it is shown; when it is decoded, for formats that go by that."""


class _Scan(NamedTuple):
    """What the packets say."""

    start: Fraction
    end: Fraction
    keys: list[_Key]
    sound_end: Fraction
    """As `end`, of the sound alone; 0 without."""
    n_sound: int
    """Packets of sound."""


def is_film(source: Source) -> bool:
    """Whether its first bytes are those of a film; a GIF is a picture to whoever does not ask for a film.

    Raises MediaError for what cannot be read.
    """
    with open_source(source, "a picture or film") as stream:
        return film_format(stream)[0] in ("mov", "matroska")


def read_video(
    source: Source,
    *,
    n_frames: Callable[[float], int],
    sample_rate: int = 16_000,
    max_sound: float = math.inf,
) -> Video:
    """A film as frames in the middle of equal parts of it, and its sound track as float32 mono at sample_rate (Hz).

    n_frames: how many are wanted of a film of so many seconds; max_sound: seconds of sound that are decoded and a
    little more, so that it can be seen that there is more.
    Frames are PIL RGB, turned as the film says, in the shape they are seen in, at most MAX_SIDE pixels a side.
    Raises MediaError when the film is missing, of another format or codec, cut, damaged, without moving pictures,
    longer than an hour, larger than 16 megapixels, or made to be slow; when its sound is as no recording may be; and
    when PyAV is not installed.
    """
    name = name_of(source)
    av = _pyav(name)
    with open_source(source, "a film (mp4, mov, webm, mkv, gif)") as stream:
        kind, fault = film_format(stream)
        if fault:
            raise MediaError(f"{name}: {fault}.")
        try:
            film = _Film(av, stream, kind, name)
            scan = film.scan()
            seconds = float(scan.end - scan.start)
            n = max(1, n_frames(seconds))
            times = [float(seconds * (2 * i + 1) / (2 * n)) for i in range(n)]
            frames = list(film.frames(scan, times))
            waveform = film.sound(scan, sample_rate, max_sound) if scan.n_sound else None
            sound_seconds = float(scan.sound_end - scan.start) if scan.n_sound else None
        except MediaError:
            raise
        except av.FFmpegError as error:
            reason = stream.failure.strerror if stream.failure else " ".join(str(error.strerror).split())
            raise MediaError(f"{name}: is a broken film ({reason}).") from None
        if stream.failure:
            raise MediaError(f"{name}: cannot be read ({stream.failure.strerror}).")
    return Video(frames, times, waveform, seconds, sound_seconds)


def _pyav(name: str) -> ModuleType:
    try:
        return importlib.import_module("av")
    except ModuleNotFoundError:
        raise MediaError(f"{name}: films are read by PyAV; pip install 'muomni[video]'.") from None


class _Film:
    """One open file, read by a container of its own for each purpose: not every format can go back."""

    def __init__(self, av: ModuleType, stream: Any, kind: str, name: str) -> None:
        self.av, self.stream, self.kind, self.name = av, stream, kind, name
        self.n_decoded = 0

    def open(self) -> tuple[Any, Any, Any]:
        """A fresh container with its picture and its sound stream, the latter None without one."""
        self.stream.seek(0)
        codecs = ",".join(sorted(VIDEO_CODECS | AUDIO_CODECS))
        bounds = {"max_pixels": str(MAX_PIXELS), "max_samples": str(MAX_PCM_BYTES // 4)}
        try:
            container = self.av.open(
                self.stream,
                format=self.kind,
                container_options={"codec_whitelist": codecs, "max_streams": str(MAX_STREAMS)},
                stream_options=[bounds] * MAX_STREAMS,
                metadata_errors="replace",
            )
        except ValueError as error:
            if isinstance(error, self.av.FFmpegError):
                raise
            # What PyAV says where there is no stream that the bounds could be given to.
            raise MediaError(f"{self.name}: holds no moving pictures; expected a film.") from None
        moving = [s for s in container.streams.video if not self._is_cover(s)]
        if not moving:
            raise MediaError(f"{self.name}: holds no moving pictures; expected a film.")
        video, audio = container.streams.best("video"), container.streams.best("audio")
        video = video if video in moving else moving[0]
        for stream, allowed in ((video, VIDEO_CODECS), (audio, AUDIO_CODECS)):
            if stream is None:
                continue
            codec = stream.codec_context
            if codec is None or codec.name not in allowed:
                told = f"coded as {codec.name}" if codec is not None else "of an unknown code"
                raise MediaError(f"{self.name}: its {stream.type} is {told}; write it again as h264 and aac.")
            if not stream.time_base:
                raise MediaError(f"{self.name}: its {stream.type} has no clock; write it again.")
            # One thread: the same pictures whatever the machine, and no more memory on one of many cores.
            codec.options, codec.thread_count = bounds, 1
        self._check_size(video.codec_context.width, video.codec_context.height)
        return container, video, audio

    def _is_cover(self, stream: Any) -> bool:
        return bool(stream.disposition & self.av.stream.Disposition.attached_pic)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise MediaError(
                f"{self.name}: {width} x {height} pixels; at most {MAX_PIXELS / 1e6:.0f} megapixels are read, "
                "make it smaller."
            )

    def scan(self) -> _Scan:
        """Look at every packet and decode none. Raises MediaError for a film that is cut or too long."""
        container, video, audio = self.open()
        keys: list[_Key] = []
        first: dict[int, Fraction] = {}
        end, sound_end, n_packets, n_sound = Fraction(0), Fraction(0), 0, 0
        for packet in container.demux([s for s in (video, audio) if s is not None]):
            n_packets += 1
            if n_packets > MAX_PACKETS:
                raise MediaError(
                    f"{self.name}: has more than {MAX_PACKETS:,} packets; cut it into shorter films."
                )
            at = packet.pts if packet.pts is not None else packet.dts
            if at is None or not packet.size:
                continue
            base = packet.stream.time_base
            time, lasts = at * base, max(packet.duration or 0, 0) * base
            first[packet.stream.index] = min(first.get(packet.stream.index, time), time)
            if packet.stream is video:
                if packet.is_keyframe or not keys:
                    keys.append(_Key(time, (at, packet.dts if packet.dts is not None else at)))
            else:
                n_sound += 1
                sound_end = max(sound_end, time + lasts)
            end = max(end, time + lasts)
        if not keys:
            raise MediaError(f"{self.name}: holds no moving pictures; expected a film.")
        # What a coder needs before the first sample that is heard has a time too, which start_time leaves out.
        start = min(
            max(first[s.index], first[s.index] if s.start_time is None else s.start_time * s.time_base)
            for s in (video, audio)
            if s is not None and s.index in first
        )
        stated = (container.duration or 0) / self.av.time_base
        seconds = float(end - start)
        if stated > seconds + max(1.0, seconds / 20):
            raise MediaError(
                f"{self.name}: is cut, {seconds:.2f} s of {stated:.2f} s; expected a whole film."
            )
        if seconds > MAX_FILM_SECONDS:
            raise MediaError(f"{self.name}: {seconds:.0f} s; at most {MAX_FILM_SECONDS} s are read, cut it.")
        return _Scan(start, end, sorted(keys), sound_end, n_sound)

    def frames(self, scan: _Scan, times: Sequence[float]) -> Iterator[Image.Image]:
        """What is seen at each time, from the last key frame before it on; nothing is decoded twice."""
        container, video, _ = self.open()
        pictures = self._decode(container, video)
        shown, ahead = None, next(pictures, None)
        for time in times:
            wanted = scan.start + Fraction(time)
            key = scan.keys[max(0, bisect.bisect_right(scan.keys, wanted, key=lambda k: k.time) - 1)]
            if ahead is not None and ahead[0] < key.time <= wanted:
                container, video, pictures = self._go(container, video, key)
                shown, ahead = None, next(pictures, None)
                if ahead is None or ahead[0] > wanted:
                    container, video, pictures = self._go(container, video, key, by_decoding=True)
                    ahead = next(pictures, None)
            while ahead is not None and (ahead[0] <= wanted or shown is None):
                shown, ahead = ahead, next(pictures, None)
            if shown is None:
                raise MediaError(f"{self.name}: has no picture at {time:.2f} s; expected a whole film.")
            yield self._picture(shown[1], video, time)

    def _go(
        self, container: Any, video: Any, key: _Key, *, by_decoding: bool = False
    ) -> tuple[Any, Any, Any]:
        """A container that is at a key frame or before it, its picture stream, and what is decoded from there."""
        try:
            container.seek(key.places[by_decoding], stream=video, backward=True, any_frame=False)
        except self.av.FFmpegError:
            # Not every container can seek; a fresh one is at its beginning.
            container, video, _ = self.open()
        return container, video, self._decode(container, video)

    def _decode(self, container: Any, video: Any) -> Iterator[tuple[Fraction, Any]]:
        """(time, frame) from where the container is."""
        last = None
        for frame in container.decode(video):
            self._check_size(frame.width, frame.height)
            self.n_decoded += max(1, frame.width * frame.height)
            if self.n_decoded > MAX_DECODED_PIXELS:
                raise MediaError(
                    f"{self.name}: has too few key frames for its length; write it again with more."
                )
            at = frame.pts if frame.pts is not None else frame.dts
            last = at * video.time_base if at is not None else last or Fraction(0)
            yield last, frame

    def _picture(self, frame: Any, video: Any, time: float) -> Image.Image:
        if frame.is_corrupt:
            raise MediaError(f"{self.name}: is damaged, its picture at {time:.2f} s is not whole.")
        clear = any(component.is_alpha for component in frame.format.components) or "pal" in frame.format.name
        pixels = frame.to_ndarray(format="rgba" if clear else "rgb24")
        picture = flatten(Image.fromarray(pixels))
        ratio = float(video.sample_aspect_ratio or 1)
        width, height = picture.width * ratio if 0.1 < ratio < 10 else picture.width, picture.height
        scale = min(1.0, MAX_SIDE / max(width, height))
        shape = max(1, round(width * scale)), max(1, round(height * scale))
        if shape != picture.size:
            picture = picture.resize(shape, Image.Resampling.BILINEAR)
        turn = TURNS.get(round(frame.rotation / 90) * 90 % 360)
        return picture if turn is None else picture.transpose(turn)

    def sound(self, scan: _Scan, sample_rate: int, max_sound: float) -> np.ndarray:
        """(n_samples,) float32 mono from the film's start on; what comes later stays at its time."""
        container, _, audio = self.open()
        codec = audio.codec_context
        rate, n_channels = codec.sample_rate, codec.channels
        if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
            raise MediaError(
                f"{self.name}: sound of {rate} Hz; expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz."
            )
        if n_channels > MAX_CHANNELS:
            raise MediaError(f"{self.name}: {n_channels} channels; expected at most {MAX_CHANNELS}.")
        # A little more than what is wanted, so that a longer track is not rounded to one that just fits.
        most = min(max_sound + GAP_SECONDS, float(scan.end - scan.start) + 1) * rate
        if most * n_channels * 4 > MAX_PCM_BYTES:
            raise MediaError(
                f"{self.name}: {most / rate:.0f} s of sound x {n_channels} channels need more than "
                f"{MAX_PCM_BYTES >> 20} MiB; cut it into shorter films."
            )
        blocks: list[np.ndarray] = []
        n = 0
        for frame in container.decode(audio):
            if frame.sample_rate != rate or len(frame.layout.channels) != n_channels:
                raise MediaError(f"{self.name}: its sound changes its rate or channels; write it again.")
            block = _mono(frame)
            self._check_sound(block)
            at = n if frame.pts is None else round((frame.pts * audio.time_base - scan.start) * rate)
            if at < 0 and not n:
                block = block[-at:]
            elif at > n + GAP_SECONDS * rate:
                blocks.append(np.zeros(int(min(at - n, most - n + 1)), np.float32))
                n += len(blocks[-1])
            blocks.append(block)
            n += len(block)
            if n > most:
                break
        mono = np.concatenate([np.zeros(0, np.float32), *blocks])
        if rate != sample_rate and len(mono):
            mono = soxr.resample(mono, rate, sample_rate)
        if not len(mono):
            raise MediaError(f"{self.name}: its sound track holds no sound; expected a whole film.")
        # The last block of a coder is filled up.
        n_whole = math.ceil((scan.end - scan.start) * sample_rate)
        return np.ascontiguousarray(mono[:n_whole], dtype=np.float32)

    def _check_sound(self, block: np.ndarray) -> None:
        top = float(np.abs(block).max()) if len(block) else 0.0
        if not np.isfinite(top):
            raise MediaError(f"{self.name}: its sound holds samples that are not finite; expected a film.")
        if top > MAX_AMPLITUDE:
            raise MediaError(f"{self.name}: its sound has samples up to {top:.0f}; expected about -1 to 1.")


def _mono(frame: Any) -> np.ndarray:
    """(n_samples,) float32 of a block of sound: channels averaged, whole numbers scaled to full scale 1."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype.kind == "u":
        return (samples.astype(np.float32).mean(axis=0) - 128) / 128
    scale = 1.0 if samples.dtype.kind == "f" else 2.0 ** (8 * samples.dtype.itemsize - 1)
    return (samples.astype(np.float32) / np.float32(scale)).mean(axis=0)
