"""Small good files of every format that media.py admits, and the pieces to forge bad ones: all made in code."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import Any

import numpy as np
import soundfile
from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def tone(n_samples: int = 4_000) -> np.ndarray:
    """(n,) float32: a quiet tone with noise, which no format packs to nothing."""
    noise = np.random.default_rng(0).standard_normal(n_samples)
    return (0.3 * np.sin(np.arange(n_samples) / 10) + 0.05 * noise).astype(np.float32)


def sound(
    samples: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str | None = None, **options: Any
) -> bytes:
    """A recording as the bytes of a file."""
    file, channels = io.BytesIO(), samples.shape[1] if samples.ndim > 1 else 1
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=kind, **options) as recording:
        # The encoder of Vorbis keeps a block on the stack.
        for start in range(0, len(samples), 2**16):
            recording.write(samples[start : start + 2**16])
    return file.getvalue()


def drawing(width: int = 24, height: int = 16) -> Image.Image:
    """RGB gradients: every row, column and channel differs."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rgb = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], axis=2)
    return Image.fromarray(rgb.astype(np.uint8))


def picture(image: Image.Image | None = None, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    (image or drawing()).save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    rows: bytes,
    *,
    depth: int = 8,
    colour: int = 2,
    extra: bytes = b"",
    interlace: int = 0,
) -> bytes:
    """A PNG of these fields and these bytes as its compressed rows, whether they fit or not."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", rows)
    return PNG_MAGIC + body + png_chunk(b"IEND", b"")


def riff(chunks: list[tuple[bytes, bytes]], form: bytes = b"WAVE", magic: bytes = b"RIFF") -> bytes:
    """A RIFF file of these chunks."""
    body = form + b"".join(k + struct.pack("<I", len(d)) + d + bytes(len(d) % 2) for k, d in chunks)
    return magic + struct.pack("<I", len(body)) + body


def wav_format(*, channels: int = 1, rate: int = 16_000, bits: int = 16, tag: int = 1) -> tuple[bytes, bytes]:
    """The format chunk of a WAV, of any values."""
    block = channels * bits // 8
    packed = struct.pack("<HHIIHH", tag, channels % 2**16, rate, rate * block % 2**32, block % 2**16, bits)
    return b"fmt ", packed


def flac_total(flac: bytes, n_frames: int) -> bytes:
    """A FLAC whose header states another number of frames (36 bits of STREAMINFO)."""
    word = int.from_bytes(flac[18:26], "big") >> 36 << 36 | n_frames
    return flac[:18] + word.to_bytes(8, "big") + flac[26:]


@functools.cache
def _ogg_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C1_1DB7 if value & 1 << 31 else 0)) & 0xFFFF_FFFF
        table.append(value)
    return table


def ogg_signed(page: bytes) -> bytes:
    """An Ogg page with its checksum made right."""
    table, value = _ogg_table(), 0
    page = page[:22] + bytes(4) + page[26:]
    for byte in page:
        value = (value << 8 & 0xFFFF_FFFF) ^ table[value >> 24 ^ byte]
    return page[:22] + struct.pack("<I", value) + page[26:]


def ogg_page(number: int, packets: list[bytes], *, granule: int = 0, flags: int = 0) -> bytes:
    """A page of packets shorter than 255 bytes each."""
    head = struct.pack("<4sBBqIII", b"OggS", 0, flags, granule, 7, number, 0)
    sizes = bytes(len(packet) for packet in packets)
    return ogg_signed(head + bytes([len(sizes)]) + sizes + b"".join(packets))


def ogg_pages(ogg: bytes) -> list[bytes]:
    """The pages of an Ogg file."""
    pages, at = [], 0
    while at < len(ogg):
        n = ogg[at + 26]
        size = 27 + n + sum(ogg[at + 27 : at + 27 + n])
        pages.append(ogg[at : at + size])
        at += size
    return pages


def ogg_granule(ogg: bytes, granule: int) -> bytes:
    """An Ogg file whose last page states another position, which is its length."""
    *pages, last = ogg_pages(ogg)
    return b"".join(pages) + ogg_signed(last[:6] + struct.pack("<q", granule) + last[14:])


def opus_silence(n_pages: int) -> bytes:
    """Ogg Opus of 5.1 s a page (255 packets of 20 ms, 3 bytes each), mono."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0)
    tags = b"OpusTags" + struct.pack("<I", 0) + struct.pack("<I", 0)
    pages = [ogg_page(0, [head], flags=2), ogg_page(1, [tags])]
    for number in range(1, n_pages + 1):
        last = 4 if number == n_pages else 0
        pages.append(ogg_page(number + 1, [b"\xf8\xff\xfe"] * 255, granule=number * 255 * 960, flags=last))
    return b"".join(pages)


def mp3_stated(mp3: bytes, n_frames: int) -> bytes:
    """An MP3 whose table of contents states another number of frames."""
    at = max(mp3[:400].find(b"Xing"), mp3[:400].find(b"Info"))
    return mp3[: at + 8] + struct.pack(">I", n_frames) + mp3[at + 12 :]


@functools.cache
def good_recordings() -> dict[str, bytes]:
    """A small file of every kind of recording that is admitted."""
    mono, stereo = tone(), np.stack([tone(), tone()[::-1]], axis=1)
    kinds = [("WAV", sub) for sub in ("PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM",
                                      "MS_ADPCM", "GSM610")]  # fmt: skip
    kinds += [
        ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AIFF", "FLOAT"),
        ("AIFF", "ULAW"),
    ]
    kinds += [("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]
    files = {f"{kind} {sub}": sound(mono, 16_000, kind, sub) for kind, sub in kinds}
    files["OGG OPUS"] = sound(mono, 48_000, "OGG", "OPUS")
    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        files[f"{kind} stereo"] = sound(stereo, 44_100, kind)
    files["RIFX"] = sound(mono, 16_000, "WAV", "PCM_16", endian="BIG")
    return {name: _undated(file) for name, file in files.items()}


def _undated(file: bytes) -> bytes:
    """Without what libsndfile writes anew each time: the number of an Ogg stream, the time of a PEAK chunk."""
    if file[:4] == b"OggS":
        return b"".join(ogg_signed(page[:14] + bytes(4) + page[18:]) for page in ogg_pages(file))
    at = file.find(b"PEAK")
    return file if at < 0 else file[: at + 12] + bytes(4) + file[at + 16 :]


@functools.cache
def good_pictures() -> dict[str, bytes]:
    """A small file of every kind of picture that is admitted."""
    rgb = drawing()
    modes = ("RGB", "RGBA", "L", "LA", "P", "1")
    files = {f"PNG {mode}": picture(rgb.convert(mode)) for mode in modes}
    files["PNG I;16"] = picture(Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 170))
    rows = b"".join(b"\0" + bytes(range(24 * 6)) for _ in range(16))
    files["PNG 16 bit"] = png(24, 16, zlib.compress(rows), depth=16)
    exif = Image.Exif()
    exif[274] = 6
    files |= {f"JPEG {mode}": picture(rgb.convert(mode), "JPEG", exif=exif) for mode in ("RGB", "L", "CMYK")}
    files["JPEG progressive"] = picture(rgb, "JPEG", progressive=True)
    files["WEBP"] = picture(rgb, "WEBP", exif=exif)
    files["WEBP lossless"] = picture(rgb.convert("RGBA"), "WEBP", lossless=True)
    files["GIF"] = picture(rgb, "GIF", comment=b"a drawing")
    files |= {f"BMP {mode}": picture(rgb.convert(mode), "BMP") for mode in ("RGB", "L", "1", "P", "RGBA")}
    frames = [rgb.rotate(90 * i) for i in (1, 2)]
    for kind in ("GIF", "WEBP", "PNG"):
        files[f"{kind} animated"] = picture(rgb, kind, save_all=True, append_images=frames, duration=50)
    return files


@functools.cache
def good_texts() -> dict[str, bytes]:
    """Texts in several scripts, as UTF-8."""
    texts = ("Press one for yes, two for no.\n", "naïve café, déjà vu", "日本語のテキスト", "Привет, мир",
             "🙂👩\u200d👧 emoji", "\ufeffwith a mark\r\n\tand a tab", "שלום", "a" * 300)  # fmt: skip
    return {text[:12]: text.encode() for text in texts}
