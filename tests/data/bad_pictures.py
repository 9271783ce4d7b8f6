"""Pictures that must be refused: what is wrong -> (a part of the reason, how the file is made)."""

from __future__ import annotations

import functools
import gzip
import struct
import zlib

import media_files as made
from bad_recordings import Case
from PIL import Image

BROKEN = "broken picture"
PNG = functools.cache(lambda: made.picture(made.drawing(200, 200)))
JPEG = functools.cache(lambda: made.picture(made.drawing(400, 400), "JPEG"))
PROGRESSIVE = functools.cache(
    lambda: made.picture(Image.new("RGB", (4_000, 3_000), (9, 99, 200)), "JPEG", progressive=True)
)
WEBP = functools.cache(lambda: made.picture(made.drawing(200, 200), "WEBP"))
GIF = functools.cache(lambda: made.picture(made.drawing(200, 200), "GIF"))
BMP = functools.cache(lambda: made.picture(made.drawing(200, 200), "BMP"))
ROWS = zlib.compress(bytes((1 + 3 * 24) * 16))


def _bomb(width: int, height: int) -> bytes:
    """RGB of nothing: deflate packs it a thousandfold, and a colour table eightfold more."""
    return made.png(width, height, zlib.compress(bytes((1 + width // 8) * height), 9), depth=1, colour=0)


def _other(kind: str) -> bytes:
    return made.picture(made.drawing(16, 16), kind)


def _patched(file: bytes, at: int, patch: bytes) -> bytes:
    return file[:at] + patch + file[at + len(patch) :]


def _png(extra: bytes = b"", **fields: int) -> bytes:
    width, height = fields.pop("width", 24), fields.pop("height", 16)
    return made.png(width, height, ROWS, extra=extra, **fields)


def _jpeg(marker: int, offset: int, patch: bytes) -> bytes:
    """A JPEG whose segment of this marker is patched, `offset` bytes behind its length."""
    return _patched(JPEG(), JPEG().index(bytes([0xFF, marker])) + 4 + offset, patch)


def _scans(n: int) -> bytes:
    """The last scan of a progressive JPEG n times: each is a pass over all pixels."""
    file = PROGRESSIVE()
    return file[:-2] + file[file.rindex(b"\xff\xda") : -2] * n + b"\xff\xd9"


def _rle(n_runs: int) -> bytes:
    palette = bytes(1_024)
    runs = b"\x01\x05" * n_runs + b"\0\x01"
    info = struct.pack("<IiiHHIIiiII", 40, 4_000, 4_000, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(info + palette + runs), 0, 0, 1_078) + info + palette + runs


def _interrupted() -> bytes:
    """A PNG whose pixels are cut in two by a chunk that is none."""
    chunks = (b"IHDR", PNG()[16:29]), (b"IDAT", PNG()[41:141]), (b"\0\1\2\3", b"abc"), (b"IEND", b"")
    return made.PNG_MAGIC + b"".join(made.png_chunk(*chunk) for chunk in chunks)


def _webp(canvas: int) -> bytes:
    """An animation of one small picture on a canvas of this side."""
    frame = made.picture(made.drawing(8, 8), "WEBP")[12:]
    side = (canvas - 1).to_bytes(3, "little")
    small = bytes(6) + (7).to_bytes(3, "little") * 2 + bytes(4)
    chunks = [(b"VP8X", b"\x02\0\0\0" + side * 2), (b"ANIM", bytes(6)), (b"ANMF", small + frame)]
    return made.riff(chunks, form=b"WEBP")


CASES: dict[str, Case] = {
    "no bytes": ("is empty", bytes),
    "one byte": ("not a picture", lambda: b"\x89"),
    "text": ("not a picture", lambda: b"hello" * 20),
    "an error page": ("not a picture", lambda: b"<!doctype html><title>404</title>"),
    "a Git LFS pointer": ("not a picture", lambda: b"version https://git-lfs.github.com/spec/v1\n"),
    "svg": ("not a picture", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "pdf": ("not a picture", lambda: b"%PDF-1.4\n%%EOF"),
    "gzip": ("not a picture", lambda: gzip.compress(PNG())),
    "a recording": ("not a picture", lambda: made.sound(made.tone())),
    "zeros": ("not a picture", lambda: bytes(2**16)),
    "tiff": ("not a picture", lambda: _other("TIFF")),
    "icon": ("not a picture", lambda: _other("ICO")),
    "ppm": ("not a picture", lambda: _other("PPM")),
    "tga": ("not a picture", lambda: _other("TGA")),
    "pcx": ("not a picture", lambda: _other("PCX")),
    "dds": ("not a picture", lambda: _other("DDS")),
    "postscript": ("not a picture", lambda: _other("EPS")),
    "jpeg 2000": ("not a picture", lambda: _other("JPEG2000")),
    "png magic alone": ("is cut", lambda: made.PNG_MAGIC),
    "png cut in its header": ("is cut", lambda: PNG()[:20]),
    "png cut in its pixels": ("is cut", lambda: PNG()[:300]),
    "png without end": ("is cut", lambda: PNG()[:-12]),
    "png without pixels": (BROKEN, lambda: made.PNG_MAGIC + PNG()[8:33] + made.png_chunk(b"IEND", b"")),
    "png without header": ("picture", lambda: made.PNG_MAGIC + made.png_chunk(b"IEND", b"")),
    "png with damaged pixels": ("checksum", lambda: _patched(PNG(), 200, b"\xff\0\xff\0")),
    "png with a damaged header": ("checksum", lambda: _patched(PNG(), 16, b"\0\0\1")),
    "png of width 0": ("picture", lambda: _png(width=0)),
    "png of width 2^31 - 1": ("too many pixels|megapixels", lambda: _png(width=2**31 - 1)),
    "png of depth 3": ("picture", lambda: _png(depth=3)),
    "png of colour type 5": ("picture", lambda: _png(colour=5)),
    "png of interlace 9": ("picture", lambda: _png(interlace=9, height=4_000)),
    "png of 16 Mpixels with few rows": (BROKEN, lambda: _png(width=4_000, height=4_000)),
    "png of 17 Mpixels": ("17 megapixels|at most 16 megapixels", lambda: _bomb(4_128, 4_128)),
    "png bomb, 821 MB": ("at most 16 megapixels", lambda: _bomb(14_336, 14_336)),
    "png bomb, 2 GB": ("at most 16 megapixels", lambda: _bomb(24_000, 24_000)),
    "png with a chunk of 4 GiB": ("is cut", lambda: _patched(PNG(), 33, b"\xff\xff\xff\xff")),
    "png with a chunk of no name": ("picture", lambda: _png(made.png_chunk(b"\0\1\2\3", b"abc"))),
    "png with a chunk of no name among its pixels": (BROKEN, _interrupted),
    "png with no deflate": (BROKEN, lambda: made.png(24, 16, b"these are no packed rows")),
    "png with texts that unfold to 70 MB": (
        BROKEN, lambda: _png(made.png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6))) * 70),
    ),
    "png of 70,000 chunks": ("65536 chunks", lambda: _png(made.png_chunk(b"prIv", b"") * 70_000)),
    "png with a broken header chunk": (
        "picture", lambda: made.PNG_MAGIC + made.png_chunk(b"IHDR", b"\0\0") + PNG()[33:],
    ),
    "jpeg magic alone": ("picture", lambda: b"\xff\xd8\xff"),
    "jpeg cut in its header": ("picture", lambda: JPEG()[:100]),
    "jpeg cut in its pixels": (BROKEN, lambda: JPEG()[: len(JPEG()) // 2]),
    "progressive jpeg cut": ("is cut", lambda: PROGRESSIVE()[: len(PROGRESSIVE()) // 2]),
    "jpeg of 65,535 x 65,535": ("too many pixels|megapixels", lambda: _jpeg(0xC0, 1, b"\xff" * 4)),
    "jpeg of width 0": (": ", lambda: _jpeg(0xC0, 3, b"\0\0")),
    "jpeg of 12 bits": ("picture", lambda: _jpeg(0xC0, 0, b"\x0c")),
    "jpeg of 7 channels": ("picture", lambda: _jpeg(0xC0, 5, b"\x07")),
    "jpeg with a broken Huffman table": (BROKEN, lambda: _jpeg(0xC4, 1, b"\xff" * 16)),
    "jpeg with a broken quantization table": ("picture", lambda: _jpeg(0xDB, 0, b"\xff")),
    "jpeg of 10,000 scans": ("more than 40 scans", lambda: _scans(10_000)),
    "jpeg of 50,000 comments": (
        "segments", lambda: JPEG()[:2] + b"\xff\xfe\0\x02" * 50_000 + JPEG()[2:],
    ),
    "jpeg of a million fill bytes": ("segments", lambda: JPEG()[:2] + b"\xff" * 10**6 + JPEG()[2:]),
    "webp cut": ("is cut", lambda: WEBP()[:200]),
    "webp stating too much": ("is cut", lambda: _patched(WEBP(), 4, struct.pack("<I", 2**29))),
    "webp of no pixels": ("picture", lambda: made.riff([(b"VP8 ", b"")], form=b"WEBP")),
    "webp of noise": ("picture", lambda: made.riff([(b"VP8L", b"\x2f" + b"\xa5" * 200)], form=b"WEBP")),
    "webp on 16,383 x 16,383": ("too many pixels|megapixels", lambda: _webp(16_383)),
    "webp on 2^24 x 2^24": ("picture|pixels", lambda: _webp(2**24)),
    "gif header alone": ("not a picture", lambda: GIF()[:13]),
    "gif cut": (BROKEN, lambda: GIF()[: len(GIF()) // 2]),
    "gif on 65,535 x 65,535": ("too many pixels|megapixels", lambda: _patched(GIF(), 6, b"\xff" * 4)),
    "gif of code size 200": (BROKEN, lambda: _patched(GIF(), GIF().index(b",\0\0\0\0") + 10, b"\xc8")),
    "gif of 50,000 comments": (
        "blocks", lambda: GIF()[:6] + b"\x01\0\x01\0\0\0\0" + b"!\xfe\x01a\0" * 50_000 + b";",
    ),
    "gif of junk": ("blocks", lambda: GIF()[:6] + b"\x01\0\x01\0\0\0\0" + b"\x99" * 10**6),
    "bmp cut in its header": ("picture", lambda: BMP()[:30]),
    "bmp cut": (BROKEN, lambda: BMP()[: len(BMP()) // 2]),
    "bmp of 60,000 x 60,000": ("pixels", lambda: _patched(BMP(), 18, struct.pack("<ii", 60_000, 60_000))),
    "bmp of width 0": ("picture", lambda: _patched(BMP(), 18, bytes(4))),
    "bmp of 3 bits": ("picture", lambda: _patched(BMP(), 28, b"\x03\0")),
    "bmp of coding 99": ("picture", lambda: _patched(BMP(), 30, b"\x63")),
    "bmp of eight million runs": ("run-length", lambda: _rle(8_000_000)),
    "a photo of 16 Mpixels that ends early": (BROKEN, lambda: _cut_photo()),
}  # fmt: skip


def _cut_photo() -> bytes:
    file = made.picture(Image.new("RGB", (4_000, 4_000), (9, 99, 200)), "JPEG")
    return file[: len(file) // 2]
