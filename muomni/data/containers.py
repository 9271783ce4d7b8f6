"""What the containers of recordings, pictures and films say of themselves against what is there, before a decoder runs.

Decoders read what is left of a cut file as if it were whole, and walk millions of empty chunks, one call each.
Nothing here decodes or keeps the file: it reads headers, and the bytes of a PNG or JPEG once, in pieces.
Sources: RIFF and RF64 (EBU Tech 3306), AIFF, RFC 9639 (FLAC), RFC 3533 (Ogg), PNG (W3C), GIF89a, ITU T.81 (JPEG),
ISO/IEC 14496-12 (MP4), RFC 8794 and 9559 (Matroska).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

UNKNOWN_LENGTH = 0x7FFF_0000
"""From here on the length in a WAV header is that of a writer to a pipe, which could not know it."""
MAX_CHUNKS = 2_000
"""Chunks of a recording, segments of a JPEG before its pixels, blocks of a GIF before its first picture."""
MAX_PNG_CHUNKS = 65_536
"""Encoders cut pixels into chunks of 8 KiB and more."""
MAX_SCANS = 40
"""Passes of a progressive JPEG over all its pixels; encoders make about ten."""
ALONE = frozenset({0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
"""Second bytes of JPEG markers without a length."""
PIECE = 2**20
"""Bytes read at once."""
MAX_SAMPLES = 2**20
"""Coded pictures and blocks of sound of one MP4: the decoder makes room for as many as the header states."""
MAX_EQUAL_SAMPLES = 2**25
"""The same where one size is stated for all of a track: single samples of PCM, 11 minutes at 48 kHz."""
MAX_HEADER_BYTES = 64 * 2**20
"""Of one box of an MP4 that is not its content."""
MP4_BOXES = frozenset(
    {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp", b"sidx"}
)
"""What an MP4 or QuickTime file may begin with."""


def recording_fault(stream: io.BufferedIOBase) -> str:
    """Why a recording is not whole or not one of WAV, AIFF, FLAC, Ogg and MP3 by its first bytes; "" if nothing.

    The stream ends at its beginning. MP3 states nothing that could be checked.
    """
    head, n_bytes = _begin(stream)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
        fault = _cut_chunks(stream, n_bytes)
    elif head[:4] == b"fLaC":
        fault = _flac_blocks(stream)
    elif head[:4] == b"OggS":
        fault = _ogg_end(stream, n_bytes)
    elif head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        fault = ""
    else:
        fault = "is not a readable recording; expected wav, flac, ogg or mp3"
    stream.seek(0)
    return fault


def picture_fault(stream: io.BufferedIOBase) -> str:
    """Why a PNG, JPEG, GIF or WebP is cut, damaged or made to be slow; "" if nothing. Ends at its beginning."""
    head, n_bytes = _begin(stream)
    walks: dict[bytes, Callable[[io.BufferedIOBase, int], str]] = {
        b"\x89PNG": _png_chunks, b"\xff\xd8\xff": _jpeg_segments, b"GIF8": _gif_blocks, b"RIFF": _cut_chunks,
    }  # fmt: skip
    fault = next((walk(stream, n_bytes) for magic, walk in walks.items() if head.startswith(magic)), "")
    stream.seek(0)
    return fault


def film_format(stream: io.BufferedIOBase) -> tuple[str, str]:
    """FFmpeg's name of a film's container by its first bytes, and why it is cut or made to be slow; "" if nothing.

    The name is never left to FFmpeg to guess: some of the formats it knows open other files. Ends at the beginning.
    """
    head, n_bytes = _begin(stream)
    if head[4:8] in MP4_BOXES:
        kind, fault = "mov", _mp4_boxes(stream, n_bytes)
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        kind, fault = "matroska", _matroska_segment(stream, n_bytes)
    elif head[:4] == b"GIF8":
        kind, fault = "gif", _gif_blocks(stream, n_bytes) or _gif_end(stream, n_bytes)
    else:
        kind, fault = "", "is not a readable film; expected mp4, mov, webm, mkv or gif"
    stream.seek(0)
    return kind, fault


def _begin(stream: io.BufferedIOBase) -> tuple[bytes, int]:
    n_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return stream.read(12), n_bytes


def _cut(there: int, stated: int) -> str:
    return f"is cut, {there} bytes of {stated}; expected a whole file"


def _cut_chunks(stream: io.BufferedIOBase, n_bytes: int) -> str:
    """WAV, RF64, AIFF and WebP: libsndfile would read what is left of a cut one."""
    stream.seek(0)
    head = stream.read(12)
    order = "little" if head[:4] in (b"RIFF", b"RF64") else "big"
    stated = 8 + int.from_bytes(head[4:8], order)
    # The byte that pads an odd length is often missing.
    if n_bytes + 1 < stated < UNKNOWN_LENGTH:
        return _cut(n_bytes, stated)
    at, long_data = 12, 0
    for _ in range(MAX_CHUNKS):
        stream.seek(at)
        kind, length = stream.read(4), int.from_bytes(stream.read(4), order)
        if len(kind) < 4:
            return ""
        if kind == b"ds64":
            long_data = int.from_bytes(stream.read(16)[8:], order)
        if kind in (b"data", b"SSND"):
            if head[:4] == b"RF64" and length == 0xFFFF_FFFF:
                length = long_data
            known = head[:4] == b"RF64" or length < UNKNOWN_LENGTH
            return _cut(n_bytes, at + 8 + length) if known and at + 8 + length > n_bytes + 1 else ""
        at += 8 + length + length % 2
    return f"has more than {MAX_CHUNKS} chunks; write it again with another program"


def _flac_blocks(stream: io.BufferedIOBase) -> str:
    at = 4
    for _ in range(MAX_CHUNKS):
        stream.seek(at)
        head = stream.read(4)
        if len(head) < 4 or head[0] & 0x80:
            return ""
        at += 4 + int.from_bytes(head[1:], "big")
    return f"has more than {MAX_CHUNKS} blocks before its sound; write it again with another program"


def _ogg_end(stream: io.BufferedIOBase, n_bytes: int) -> str:
    """A whole Ogg stream ends with a page marked as its last."""
    # The longest page: a header of 27 bytes, 255 lengths and as many segments of 255 bytes.
    stream.seek(max(0, n_bytes - 2 * (27 + 255 + 255 * 255)))
    tail = stream.read()
    page = tail[tail.rfind(b"OggS") :]
    n_segments = page[26] if len(page) > 26 else 0
    whole = 27 + n_segments + sum(page[27 : 27 + n_segments])
    if not n_segments or len(page) < whole or not page[5] & 4:
        return "is cut: its last page is missing; expected a whole file"
    return ""


def _png_chunks(stream: io.BufferedIOBase, n_bytes: int) -> str:
    """Every chunk lies in the file and has its checksum: Pillow does not look at those of the pixels."""
    at = 8
    for _ in range(MAX_PNG_CHUNKS):
        stream.seek(at)
        length, kind = int.from_bytes(stream.read(4), "big"), stream.read(4)
        if at + 12 + length > n_bytes:
            return _cut(n_bytes, at + 12 + length)
        checksum, left = zlib.crc32(kind), length
        while left:
            piece = stream.read(min(left, PIECE))
            if not piece:
                return _cut(n_bytes - left, n_bytes)
            checksum, left = zlib.crc32(piece, checksum), left - len(piece)
        if int.from_bytes(stream.read(4), "big") != checksum:
            return f"is damaged: the checksum of a chunk at byte {at} is wrong"
        if kind == b"IEND":
            return ""
        at += 12 + length
    return f"has more than {MAX_PNG_CHUNKS} chunks; write it again with another program"


def _jpeg_segments(stream: io.BufferedIOBase, n_bytes: int) -> str:
    """Segments before the pixels, then scans: each scan costs a pass over all pixels, and may be 30 bytes long."""
    at, progressive = 2, False
    for _ in range(MAX_CHUNKS):
        stream.seek(at)
        head = stream.read(4)
        if len(head) < 4 or head[:2] == b"\xff\xda":
            break
        progressive = progressive or head[:2] == b"\xff\xc2"
        # Pillow skips bytes between segments one by one.
        if head[0] != 0xFF or head[1] == 0xFF:
            at += 1
        elif head[1] in ALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(head[2:], "big"))
    else:
        return f"has more than {MAX_CHUNKS} segments before its pixels; write it again with another program"
    stream.seek(at)
    n_scans, last, ended = 0, b"", False
    while n_scans <= MAX_SCANS and (piece := stream.read(PIECE)):
        n_scans += (last + piece).count(b"\xff\xda")
        ended = ended or b"\xff\xd9" in last + piece
        last = piece[-1:]
    if n_scans > MAX_SCANS:
        return f"has more than {MAX_SCANS} scans; write it again with another program"
    # A decoder would first make room for the whole of it, 10 bytes a pixel.
    if progressive and not ended:
        return "is cut: its end is missing; expected a whole file"
    return ""


def _gif_blocks(stream: io.BufferedIOBase, n_bytes: int) -> str:
    stream.seek(10)
    flags = stream.read(1)
    at = 13 + (6 << (flags[0] & 7) if flags and flags[0] & 0x80 else 0)
    inside = False
    for _ in range(MAX_CHUNKS):
        stream.seek(at)
        head = stream.read(1)
        if not head or (not inside and head in b",;"):
            return ""
        if inside:
            inside = head != b"\0"
            at += 1 + head[0]
        else:
            # Pillow skips bytes between blocks one by one.
            inside = head == b"!"
            at += 2 if inside else 1
    return f"has more than {MAX_CHUNKS} blocks before its first picture; write it again with another program"


def _gif_end(stream: io.BufferedIOBase, n_bytes: int) -> str:
    stream.seek(max(0, n_bytes - PIECE))
    return (
        ""
        if stream.read().rstrip(b"\0").endswith(b";")
        else "is cut: its end is missing; expected a whole file"
    )


def _mp4_boxes(stream: io.BufferedIOBase, n_bytes: int) -> str:
    """Boxes lie in the file, and no table states more samples than there can be: FFmpeg reserves 24 bytes for each."""
    at, n_samples, described = 0, 0, False
    for _ in range(MAX_CHUNKS):
        stream.seek(at)
        head = stream.read(16)
        if len(head) < 8:
            return "" if described else "is cut: its header is missing; expected a whole file"
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        elif size == 0:
            size = n_bytes - at
        if size < 8:
            return f"is damaged: a box at byte {at} states {size} bytes"
        if at + size > n_bytes:
            return _cut(n_bytes, at + size)
        if kind != b"mdat":
            if size > MAX_HEADER_BYTES:
                return (
                    f"states {size / 2**20:.0f} MiB before its pictures; write it again with another program"
                )
            stream.seek(at)
            box = stream.read(size)
            described = described or kind == b"moov"
            n, fault = _stated_samples(box, n_bytes)
            n_samples += n
            if not fault and n_samples > MAX_SAMPLES:
                fault = (
                    f"states more than {MAX_SAMPLES:,} pictures or blocks of sound; cut it into shorter films"
                )
            if fault:
                return fault
        at += size
    return f"has more than {MAX_CHUNKS} boxes; write it again with another program"


def _stated_samples(box: bytes, n_bytes: int) -> tuple[int, str]:
    """Samples that the tables anywhere in a box state, tables of one size apart, and what is wrong with them."""
    if b"cmov" in box:
        return 0, "has a packed header; write it again with another program"
    n_samples = 0
    # Looked for as bytes: the decoder finds a table in boxes where none belongs.
    for name, place in ((b"stsz", 12), (b"stz2", 12), (b"trun", 8)):
        at = box.find(name)
        while at >= 0:
            count = int.from_bytes(box[at + place : at + place + 4], "big")
            size = int.from_bytes(box[at + 8 : at + 12], "big") if name == b"stsz" else 0
            if not size:
                n_samples += count
            elif count * size > n_bytes or count > MAX_EQUAL_SAMPLES:
                return 0, f"states {count:,} samples of {size} bytes; write it again with another program"
            at = box.find(name, at + 4)
    return n_samples, ""


def _matroska_segment(stream: io.BufferedIOBase, n_bytes: int) -> str:
    """The file's one long element lies in it, where its length is known."""
    at = 0
    for _ in range(MAX_CHUNKS):
        stream.seek(at)
        head = stream.read(12)
        n_id = 9 - head[0].bit_length() if head and head[0] else 9
        n_size = 9 - head[n_id].bit_length() if len(head) > n_id and head[n_id] else 9
        if n_id > 4 or n_size > 8 or len(head) < n_id + n_size:
            return "is damaged: an element of its header has no length"
        bits = 7 * n_size
        size = int.from_bytes(head[n_id : n_id + n_size], "big") & ((1 << bits) - 1)
        unknown = size == (1 << bits) - 1
        at += n_id + n_size + (0 if unknown else size)
        if at > n_bytes:
            return _cut(n_bytes, at)
        if head[:4] == b"\x18\x53\x80\x67":
            return ""
    return f"has more than {MAX_CHUNKS} elements before its content; write it again with another program"
