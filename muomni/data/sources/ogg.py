"""Ogg pages with a chosen stream serial, so that encoding the same recording gives the same bytes.

libsndfile draws the serial at random. Page layout and checksum: RFC 3533, section 6.
"""

from __future__ import annotations

import functools

_SERIAL, _CHECKSUM, _N_SEGMENTS, _TABLE = 14, 22, 26, 27
"""Byte offsets of a page's fields."""


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        crc = value << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)
        table.append(crc & 0xFFFFFFFF)
    return tuple(table)


def page_checksum(page: bytes | bytearray) -> int:
    """CRC-32 of a page whose checksum field is zero: polynomial 0x04c11db7, not reflected, start 0."""
    table, crc = _crc_table(), 0
    for byte in page:
        crc = ((crc << 8) & 0xFFFFFFFF) ^ table[(crc >> 24) ^ byte]
    return crc


def with_serial(stream: bytes, serial: int) -> bytes:
    """The Ogg stream with every page's serial replaced and its checksum renewed.

    Raises ValueError when a page does not start where the one before it ends.
    """
    pages: list[bytes] = []
    start = 0
    while start < len(stream):
        if stream[start : start + 4] != b"OggS":
            raise ValueError(f"stream: no Ogg page at byte {start}; expected a whole Ogg file.")
        n_segments = stream[start + _N_SEGMENTS]
        sizes = stream[start + _TABLE : start + _TABLE + n_segments]
        end = start + _TABLE + n_segments + sum(sizes)
        page = bytearray(stream[start:end])
        page[_SERIAL : _SERIAL + 4] = serial.to_bytes(4, "little")
        page[_CHECKSUM : _CHECKSUM + 4] = bytes(4)
        page[_CHECKSUM : _CHECKSUM + 4] = page_checksum(page).to_bytes(4, "little")
        pages.append(bytes(page))
        start = end
    return b"".join(pages)
