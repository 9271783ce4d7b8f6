"""The one choke point for every file or byte from outside: pictures and recordings become checked arrays.

Sizes are bounded from the header before anything is decoded; what passes is finite, mono and 16 kHz, or RGB.
Texts are not empty and are UTF-8.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import soundfile
import soxr
from PIL import Image, UnidentifiedImageError

from muomni.errors import UserError

Source = Path | str | bytes

AUDIO_FORMATS = frozenset({"WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF", "RF64"})
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8_000, 192_000
"""Hz."""
MAX_PCM_BYTES = 64 * 2**20
"""Bound on frames x channels x 4 bytes of one recording."""
MAX_CHANNELS = 8
MAX_PIXELS = 16_000_000
MAX_FILE_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 16 * 2**20
UNKNOWN_LENGTH = 0x7FFF_0000
"""From here on the length in a WAV header is that of a writer to a pipe, which could not know it."""


class MediaError(UserError, ValueError):
    """A file, byte string or text that is not a usable picture, recording or text."""


def _name(source: Source) -> str:
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)


class _Stream(io.BytesIO):
    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Refuse a place before the start without raising: soundfile would print the traceback and go on."""
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def _open(source: Source, what: str) -> io.BytesIO:
    if isinstance(source, bytes):
        payload = source
    else:
        path = Path(source)
        if not path.exists():
            raise MediaError(f"{path}: no such file; give the path of {what}.")
        if not path.is_file():
            raise MediaError(f"{path}: is not a file; give the path of {what}.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise MediaError(
                f"{path}: {path.stat().st_size / 2**20:.0f} MiB, at most {MAX_FILE_BYTES >> 20} are read."
            )
        try:
            payload = path.read_bytes()
        except PermissionError:
            raise MediaError(f"{path}: may not be read; check its permissions.") from None
    if not payload:
        raise MediaError(f"{_name(source)}: is empty; expected {what}.")
    return _Stream(payload)


def read_audio(source: Source, *, sample_rate: int = 16_000, max_seconds: float | None = None) -> np.ndarray:
    """A recording as (n_samples,) float32 mono in about [-1, 1] at sample_rate (Hz), resampled by soxr.

    Raises MediaError when it is missing, not WAV/FLAC/OGG/MP3/AIFF, empty, cut (WAV, AIFF, FLAC), longer than
    max_seconds, outside 8-192 kHz, of more than 8 channels or 64 MiB of PCM by its header, or holds a non-finite
    sample.
    """
    name = _name(source)
    stream = _open(source, "a recording (wav, flac, ogg, mp3)")
    _check_whole(stream, name)
    try:
        with soundfile.SoundFile(stream) as file:
            if file.format not in AUDIO_FORMATS:
                raise MediaError(f"{name}: format {file.format}; expected wav, flac, ogg or mp3.")
            rate, channels, frames = file.samplerate, file.channels, file.frames
            if frames <= 0:
                raise MediaError(f"{name}: holds 0 seconds of sound; expected a recording.")
            if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
                raise MediaError(f"{name}: {rate} Hz; expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz.")
            if channels > MAX_CHANNELS:
                raise MediaError(f"{name}: {channels} channels; expected at most {MAX_CHANNELS}.")
            if frames * channels * 4 > MAX_PCM_BYTES:
                raise MediaError(
                    f"{name}: {frames / rate:.0f} s x {channels} channels need more than {MAX_PCM_BYTES >> 20} MiB; "
                    "cut it into shorter files."
                )
            if max_seconds is not None and frames / rate > max_seconds:
                raise MediaError(
                    f"{name}: {frames / rate:.2f} s; at most {max_seconds:.2f} s fit, shorten it."
                )
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{name}: is not a readable recording ({error.error_string.rstrip('.')}).") from None
    if not len(samples):
        raise MediaError(f"{name}: holds 0 seconds of sound; expected a recording.")
    if not np.isfinite(samples).all():
        raise MediaError(f"{name}: holds samples that are not finite; expected a recording.")
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
        if not len(mono):
            raise MediaError(f"{name}: is too short to resample; expected a recording.")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _check_whole(stream: io.BytesIO, name: str) -> None:
    """Raise MediaError for a WAV or AIFF that ends before its header says: libsndfile reads what is left of it."""
    there = stream.getbuffer()
    if bytes(there[:4]) not in (b"RIFF", b"FORM"):
        return
    stated = 8 + int.from_bytes(there[4:8], "little" if there[0] == ord("R") else "big")
    # The byte that pads an odd length is often missing.
    if len(there) + 1 < stated < UNKNOWN_LENGTH:
        raise MediaError(f"{name}: is cut, {len(there)} bytes of {stated}; expected a whole recording.")


def read_text(source: str | bytes, *, name: str) -> str:
    """A text from outside as it is: UTF-8, not empty.

    A string with surrogates is not UTF-8: bytes decoded by "surrogateescape", or JSON's lone ones, hold them.
    Raises MediaError, beginning with `name`, also for more than MAX_TEXT_BYTES or nothing but white space.
    """
    try:
        encoded = source if isinstance(source, bytes) else source.encode("utf-8")
        text = encoded.decode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise MediaError(f"{name}: is not UTF-8 ({error.reason} at {error.start}).") from None
    if len(encoded) > MAX_TEXT_BYTES:
        raise MediaError(
            f"{name}: {len(encoded) / 2**20:.1f} MiB of text, at most {MAX_TEXT_BYTES >> 20} are read."
        )
    if not text.strip():
        raise MediaError(f"{name}: is empty; expected text.")
    return text


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as PIL RGB, transparency flattened on white, EXIF rotation not applied.

    Raises MediaError when it is missing, not PNG/JPEG/WEBP/GIF/BMP, larger than max_pixels by its header,
    or broken.
    """
    name = _name(source)
    stream = _open(source, "a picture (png, jpeg, webp, gif, bmp)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(stream, formats=IMAGE_FORMATS)
        if picture.width * picture.height > max_pixels:
            raise MediaError(
                f"{name}: {picture.width} x {picture.height} pixels; at most {max_pixels / 1e6:.0f} megapixels are "
                "read, make it smaller."
            )
        picture.load()
        if picture.mode.startswith("I"):
            # Pillow clips 16-bit grey at 255 when it converts: everything but the darkest would turn white.
            wide = np.clip(np.asarray(picture), 0, 65_535).astype(np.uint16)
            return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            layer = picture.convert("RGBA")
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layer).convert("RGB")
        return picture.convert("RGB")
    except UnidentifiedImageError:
        raise MediaError(f"{name}: is not a picture; expected png, jpeg, webp, gif or bmp.") from None
    except Image.DecompressionBombError:
        raise MediaError(
            f"{name}: too many pixels; at most {max_pixels / 1e6:.0f} megapixels are read."
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        # Pillow's plugins raise all of these for broken files.
        if isinstance(error, MediaError):
            raise
        reason = " ".join(str(error).split())
        raise MediaError(f"{name}: is a broken picture ({reason}).") from None


def write_wav(path: Path | str, waveform: np.ndarray, sample_rate: int) -> None:
    """Write (n_samples,) float32 in [-1, 1] as 16-bit WAV; values outside are clipped.

    Raises MediaError for a non-finite sample; OSError when the file cannot be written.
    """
    if not np.isfinite(waveform).all():
        raise MediaError(f"{path}: the waveform to write holds samples that are not finite.")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1.0, 1.0), sample_rate, format="WAV", subtype="PCM_16")
    Path(os.fspath(path)).write_bytes(buffer.getvalue())
