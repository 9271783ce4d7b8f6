"""The one choke point for every file or byte from outside: pictures, recordings and texts become checked values.

Films come through film.py, which opens files and bounds frames and samples by what is here.

Sizes are bounded from the header before anything is decoded, and what a header cannot be trusted with while decoding.
What passes is finite, mono and of the asked rate, or RGB, or UTF-8. docs/data.md lists the limits.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from PIL import Image, UnidentifiedImageError

from muomni.data.containers import picture_fault, recording_fault
from muomni.errors import UserError

Source = Path | str | bytes

AUDIO_FORMATS = frozenset({"WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF", "RF64"})
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8_000, 192_000
"""Hz."""
MAX_PCM_BYTES = 64 * 2**20
"""Bound on frames x channels x 4 bytes of one recording."""
MAX_CHANNELS = 8
MAX_AMPLITUDE = 16.0
"""Full scale is 1; whole numbers in a float file would drown everything they are mixed with."""
MAX_PIXELS = 16_000_000
MAX_FILE_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 16 * 2**20
BLOCK_BYTES = 2**20
"""PCM or text looked at in one piece."""
FULL_TURN = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
             5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
             8: Image.Transpose.ROTATE_90}  # fmt: skip
"""EXIF's orientation (tag 274) -> what shows the picture as it was taken."""
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
"""Control characters but tab, line ends and form feed: a text has none, a binary file many."""
SEEN = re.compile(r"[^\s\u200b-\u200f\u2060\ufeff]")
"""A character that is neither white space nor of width zero."""


class MediaError(UserError, ValueError):
    """A file, byte string or text that is not a usable picture, recording or text."""


def name_of(source: Source) -> str:
    """What a message calls a file or bytes."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    # A message is one line that any terminal can show, whatever the file is called.
    return str(source) if str(source).isprintable() else ascii(str(source))[1:-1]


class _Stream(io.BufferedReader):
    """What the decoders read. libsndfile calls it from C, where an exception would be printed and forgotten."""

    failure: OSError | None = None

    @property
    def name(self) -> str:
        """Nothing: soundfile would take the ending of a file's name for its format."""
        return ""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Stay where it is instead of going before the start."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OSError):
            return self.tell()

    def readinto(self, buffer: memoryview, /) -> int:
        """Read nothing, and remember why, where the medium fails."""
        try:
            return super().readinto(buffer)
        except OSError as failure:
            self.failure = failure
            return 0


def open_source(source: Source, what: str) -> _Stream:
    """Raises MediaError for what is not a regular file that may be read, or is empty or too large."""
    if isinstance(source, bytes):
        if not source:
            raise MediaError(f"{name_of(source)}: is empty; expected {what}.")
        return _Stream(io.BytesIO(source))  # pyright: ignore[reportArgumentType]
    name = name_of(source)
    try:
        # Looked at before opening: to open a device can already act on it.
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise MediaError(f"{name}: is not a file; give the path of {what}.")
        raw = io.FileIO(source, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))
        n_bytes = os.fstat(raw.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(f"{name}: no such file; give the path of {what}.") from None
    except PermissionError:
        raise MediaError(f"{name}: may not be read; check its permissions.") from None
    except MediaError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MediaError(f"{name}: cannot be opened ({reason}); give the path of {what}.") from None
    stream = _Stream(raw)
    if 0 < n_bytes <= MAX_FILE_BYTES:
        return stream
    stream.close()
    if not n_bytes:
        raise MediaError(f"{name}: is empty; expected {what}.")
    raise MediaError(f"{name}: {n_bytes / 2**20:.0f} MiB, at most {MAX_FILE_BYTES >> 20} are read.")


def read_bytes(path: Path, *, what: str = "a recording or picture") -> bytes:
    """A file as it is. Raises MediaError for what is not a regular file that may be read, is empty or too large."""
    with open_source(path, what) as stream:
        payload = stream.read()
        if stream.failure is not None:
            raise MediaError(f"{name_of(path)}: cannot be read ({stream.failure.strerror}).")
    return payload


def read_stream(stream: BinaryIO, *, name: str, what: str = "a recording or picture") -> bytes:
    """What a pipe gives until it ends. Raises MediaError, beginning with `name`, for nothing and for too much."""
    payload = stream.read(MAX_FILE_BYTES + 1)
    if not payload:
        raise MediaError(f"{name}: is empty; expected {what}.")
    if len(payload) > MAX_FILE_BYTES:
        raise MediaError(f"{name}: more than {MAX_FILE_BYTES >> 20} MiB, which is the most that is read.")
    return payload


def read_audio(source: Source, *, sample_rate: int = 16_000, max_seconds: float | None = None) -> np.ndarray:
    """A recording as (n_samples,) float32 mono in about [-1, 1] at sample_rate (Hz), resampled by soxr.

    Raises MediaError when it is missing, not WAV/FLAC/OGG/MP3/AIFF, empty, cut, longer than max_seconds, outside
    8-192 kHz, of more than 8 channels or 64 MiB of PCM, shorter than its header says, or holds a sample that is not
    finite or beyond MAX_AMPLITUDE.
    """
    name = name_of(source)
    with open_source(source, "a recording (wav, flac, ogg, mp3)") as stream:
        if fault := recording_fault(stream):
            raise MediaError(f"{name}: {fault}.")
        try:
            with soundfile.SoundFile(stream) as file:
                _check_header(file, name, max_seconds)
                rate = file.samplerate
                mono = _decode(file, stream, name)
        except soundfile.LibsndfileError as error:
            reason = stream.failure.strerror if stream.failure else error.error_string.rstrip(".")
            raise MediaError(f"{name}: is not a readable recording ({reason}).") from None
        if stream.failure:
            raise MediaError(f"{name}: cannot be read ({stream.failure.strerror}).")
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
        if not len(mono):
            raise MediaError(f"{name}: is too short to resample; expected a recording.")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _check_header(file: soundfile.SoundFile, name: str, max_seconds: float | None) -> None:
    if file.format not in AUDIO_FORMATS:
        raise MediaError(f"{name}: format {file.format}; expected wav, flac, ogg or mp3.")
    rate, channels, frames = file.samplerate, file.channels, file.frames
    if frames <= 0:
        raise MediaError(f"{name}: holds 0 seconds of sound; expected a recording.")
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise MediaError(f"{name}: {rate} Hz; expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz.")
    if channels > MAX_CHANNELS:
        raise MediaError(f"{name}: {channels} channels; expected at most {MAX_CHANNELS}.")
    if frames >= 2**36 - 1:
        raise MediaError(f"{name}: does not state its length; write it again, to a file.")
    if frames * channels * 4 > MAX_PCM_BYTES:
        raise MediaError(
            f"{name}: {frames / rate:.0f} s x {channels} channels need more than {MAX_PCM_BYTES >> 20} MiB; "
            "cut it into shorter files."
        )
    if max_seconds is not None and frames / rate > max_seconds:
        raise MediaError(f"{name}: {frames / rate:.2f} s; at most {max_seconds:.2f} s fit, shorten it.")


def _decode(file: soundfile.SoundFile, stream: _Stream, name: str) -> np.ndarray:
    """(n_samples,) float32 mono at the file's own rate. Decodes no more than the checked header says."""
    if file.frames * file.channels * 4 > MAX_PCM_BYTES // 2 and file.format != "MP3":
        # A large recording is decoded twice: a bad one must not be kept until its fault is found.
        for _ in _blocks(file, name):
            pass
        file.seek(0)
    mono, n_samples = np.empty(file.frames, np.float32), 0
    for block in _blocks(file, name):
        mono[n_samples : n_samples + len(block)] = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
        n_samples += len(block)
    # MP3 without a table of contents only guesses its length, in whole frames of 1,152 samples.
    missing = file.frames - n_samples
    if not n_samples or missing > (max(4_608, file.frames // 8) if file.format == "MP3" else 0):
        raise MediaError(f"{name}: is cut, {n_samples} samples of {file.frames}; expected a whole recording.")
    at, n_bytes = stream.tell(), stream.seek(0, os.SEEK_END)
    if file.format in ("FLAC", "MP3", "OGG") and n_bytes > 2 * at:
        raise MediaError(f"{name}: states {n_samples} samples, {n_bytes - at} bytes follow; write it again.")
    return mono[:n_samples]


def _blocks(file: soundfile.SoundFile, name: str) -> Iterator[np.ndarray]:
    """(n, channels) float32, valid until the next. Raises MediaError for a sample not finite or far too large."""
    # soundfile seeks after each read, and an MP3 decoder can lose there what the next frame needs.
    n_frames = file.frames if file.format == "MP3" else min(file.frames, BLOCK_BYTES // (4 * file.channels))
    room = np.empty((n_frames, file.channels), np.float32)
    left = file.frames
    while len(block := file.read(out=room)):
        left -= len(block)
        if left < 0:
            raise MediaError(f"{name}: holds more than the {file.frames} samples it states; write it again.")
        low, high = float(block.min()), float(block.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise MediaError(f"{name}: holds samples that are not finite; expected a recording.")
        if max(-low, high) > MAX_AMPLITUDE:
            raise MediaError(
                f"{name}: samples up to {max(-low, high):.0f}; expected about -1 to 1, scale them."
            )
        yield block
        if file.format == "MP3":
            return


def read_text(source: str | bytes, *, name: str, may_be_blank: bool = False) -> str:
    """A text from outside as it is, but for a byte order mark before it: UTF-8, not empty.

    A string with surrogates is not UTF-8: bytes decoded by "surrogateescape", or JSON's lone ones, hold them.
    Raises MediaError, beginning with `name`, also for more than MAX_TEXT_BYTES, a control character, or, unless it
    may_be_blank, nothing that could be seen.
    """
    n_bytes, n_before, seen = 0, 0, False
    try:
        for piece in _pieces(source):
            n_bytes += len(piece.encode("utf-8"))
            n_before = n_bytes if isinstance(source, bytes) else n_before + len(piece)
            if found := CONTROL.search(piece):
                raise MediaError(f"{name}: holds the control character U+{ord(found[0]):04X}; expected text.")
            seen = seen or SEEN.search(piece) is not None
            if n_bytes > MAX_TEXT_BYTES:
                break
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise MediaError(f"{name}: is not UTF-8 ({error.reason} at {n_before + error.start}).") from None
    if n_bytes > MAX_TEXT_BYTES:
        size = max(n_bytes, len(source)) / 2**20
        raise MediaError(f"{name}: {size:.1f} MiB of text, at most {MAX_TEXT_BYTES >> 20} are read.")
    if not (seen or may_be_blank):
        raise MediaError(f"{name}: is empty; expected text.")
    return (source.decode("utf-8") if isinstance(source, bytes) else source).removeprefix("\ufeff")


def _pieces(source: str | bytes) -> Iterator[str]:
    """A text in parts: one wide character makes a string of them all four times as large."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(source), BLOCK_BYTES):
        part = source[start : start + BLOCK_BYTES]
        yield part if isinstance(part, str) else decoder.decode(part, start + BLOCK_BYTES >= len(source))


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as PIL RGB, turned as its EXIF says, transparency flattened on white; of several the first.

    Raises MediaError when it is missing, not PNG/JPEG/WEBP/GIF/BMP, larger than max_pixels by its header, cut,
    broken, or made to be slow (see containers.py; run-length encoded BMP).
    """
    name = name_of(source)
    with open_source(source, "a picture (png, jpeg, webp, gif, bmp)") as stream:
        if fault := picture_fault(stream):
            raise MediaError(f"{name}: {fault}.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = Image.open(stream, formats=IMAGE_FORMATS)
                return _decode_picture(picture, name, max_pixels)
        except UnidentifiedImageError:
            raise MediaError(f"{name}: is not a picture; expected png, jpeg, webp, gif or bmp.") from None
        except Image.DecompressionBombError:
            raise MediaError(
                f"{name}: too many pixels; at most {max_pixels / 1e6:.0f} megapixels are read."
            ) from None
        except MediaError:
            raise
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
            # Pillow's plugins raise all of these for broken files.
            reason = " ".join(str(error).split())
            raise MediaError(f"{name}: is a broken picture ({reason}).") from None


def _decode_picture(picture: Image.Image, name: str, max_pixels: int) -> Image.Image:
    n_pixels = picture.width * picture.height
    if not n_pixels:
        raise MediaError(f"{name}: holds no pixels; expected a picture.")
    if n_pixels > max_pixels:
        raise MediaError(
            f"{name}: {picture.width} x {picture.height} pixels; at most {max_pixels / 1e6:.0f} megapixels are "
            "read, make it smaller."
        )
    if any(tile[0] == "bmp_rle" for tile in getattr(picture, "tile", ())):
        # Pillow decodes it in Python, seconds for a file of megabytes.
        raise MediaError(f"{name}: is a run-length encoded bmp; save it as png.")
    picture.load()
    turn = FULL_TURN.get(_orientation(picture))
    rgb = flatten(picture)
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 (as it is stored) where the EXIF is missing or broken: the pixels are sound."""
    try:
        value = picture.getexif().get(274, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return 1
    return value if isinstance(value, int) else 1


def flatten(picture: Image.Image) -> Image.Image:
    """Any picture as RGB, transparency on white."""
    if picture.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 when it converts: everything but the darkest would turn white.
        wide = np.clip(np.asarray(picture), 0, 65_535).astype(np.uint16)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def write_wav(path: Path | str, waveform: np.ndarray, sample_rate: int) -> None:
    """Write (n_samples,) float32 in [-1, 1] as 16-bit WAV; values outside are clipped.

    Raises MediaError for a non-finite sample; OSError when the file cannot be written.
    """
    if not np.isfinite(waveform).all():
        raise MediaError(f"{path}: the waveform to write holds samples that are not finite.")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1.0, 1.0), sample_rate, format="WAV", subtype="PCM_16")
    Path(os.fspath(path)).write_bytes(buffer.getvalue())
