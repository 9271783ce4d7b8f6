"""What is said in Flight of the Amazon Queen: the line and the speaker of each recording in the game's one data file.

All numbers are big-endian. The file is `QTBL`, a version, the number of members at byte 13, and 21 bytes a member: its
name (12), a flag, its offset and size. Recordings are named after the line they say, and after which part of it:

    020006P2.SB  dialogue 02, node 0x0006, the other person, part 2 -> a .DOG file; SSSS, XXXX: greetings
    C18D_023.SB  cutaway C18D, record 02, part 3                    -> C18D.CUT
    JOE02171.SB  Joe's remark 217, part 1                           -> QUEEN2.JAS, counted by QUEEN.JAS

A line is cut into parts by codes for gestures such as *03 or *FL. Formats: as the engine of ScummVM reads them
(engines/queen: talk.cpp, cutaway.cpp, logic.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from muomni.data.sources.fetch import SourceError

MAGIC = b"QTBL"
ENTRIES = 15
"""Byte at which the members' entries begin."""
ENTRY_BYTES = 21
HEADER = 20
"""Bytes of a .DOG, .CUT or QUEEN.JAS before its first number; places in it count from there."""
ENCODING = "cp1252"
JOE, OTHERS = "joe", "others"
"""The hero; whoever else speaks in a cutaway, which does not say who it is."""
REMARKS = 40
"""Numbers of Joe's remarks up to here are his answers, behind them his descriptions."""
VERBS = 12
"""Names of verbs in QUEEN2.JAS."""
PERSON = (-3, -4)
"""Images of an object that is a person, who looks to either side."""
_CODE = re.compile(r"\*(?:XY\d\d\(\d+,\d+\)|..)")
_DIALOGUE = re.compile(r"\d\d[0-9A-FSX]{4}[JP]")


class Line(NamedTuple):
    """What a recording says, and who."""

    text: str
    """As it is written in the game, without gestures."""
    speaker: str
    """joe, others, or the name of the dialogue's file without its number."""


def members(container: bytes) -> dict[str, memoryview]:
    """The files of the container by name. Raises SourceError for another kind of file, or one that is cut."""
    if container[: len(MAGIC)] != MAGIC:
        raise SourceError(
            f"queen.1c: begins with {container[:4]!r}, expected {MAGIC!r}; fetch its package again."
        )
    found: dict[str, memoryview] = {}
    for number in range(int.from_bytes(container[13:15], "big")):
        at = ENTRIES + ENTRY_BYTES * number
        name = container[at : at + 12].split(b"\0")[0].decode("ascii")
        offset, size = (int.from_bytes(container[at + i : at + i + 4], "big") for i in (13, 17))
        if offset + size > len(container):
            raise SourceError(
                f"queen.1c: is cut, {name} ends at byte {offset + size}; fetch its package again."
            )
        found[name] = memoryview(container)[offset : offset + size]
    return found


def lines(found: Mapping[str, memoryview]) -> Iterator[tuple[str, Line]]:
    """The names of the recordings whose line is known, such as 020006P2, in the container's order, with that line."""
    whole: dict[str, Line] = {}
    data = bytes(found["QUEEN.JAS"])[HEADER:]
    people = _people(data)
    whole |= {f"JOE{n:04d}": Line(text, JOE) for n, text in _remarks(data, bytes(found["QUEEN2.JAS"]))}
    for name, content in found.items():
        stem, _, kind = name.partition(".")
        if kind == "DOG":
            own = stem.rstrip("0123456789").lower()
            for key, text in _dialogue(bytes(content)[HEADER:]):
                whole[key] = Line(text, JOE if key[-1] == "J" else own)
        elif kind == "CUT":
            for number, is_joe, text in _cutaway(bytes(content)[HEADER:], people):
                whole[f"{stem:_<5}{number:02d}"] = Line(text, JOE if is_joe else OTHERS)
    for name in found:
        stem, _, kind = name.partition(".")
        key, part = stem[:7], stem[7:]
        if kind != "SB" or key not in whole or part not in "123456789ABCDEF":
            continue
        parts = _CODE.split(whole[key].text)
        if int(part, 16) <= len(parts) and parts[int(part, 16) - 1].strip():
            yield stem, Line(parts[int(part, 16) - 1].strip(), whole[key].speaker)


def _number(data: bytes, at: int) -> int:
    if at + 2 > len(data):
        raise SourceError(
            f"queen.1c: a file of {len(data)} bytes goes on beyond its end; fetch its package again."
        )
    return int.from_bytes(data[at : at + 2], "big", signed=True)


def _string(data: bytes, at: int, align: int = 2) -> tuple[str, int]:
    """A string with its length before it, and where the next thing begins; an empty one is not aligned."""
    length, at = int.from_bytes(data[at : at + 1], "big"), at + 1
    if not length:
        return "", at
    return data[at : at + length].decode(ENCODING), -(-(at + length) // align) * align


def _people(data: bytes) -> set[int]:
    """The objects that are persons, by number from 1; each has 16 bytes, its image last."""
    return {n + 1 for n in range(_number(data, 4)) if _number(data, 8 + 16 * n + 14) in PERSON}


def _remarks(data: bytes, listing: bytes) -> Iterator[tuple[int, str]]:
    """Joe's answers and descriptions: before the answers stand descriptions, objects', rooms' and verbs' names."""
    said = listing.decode(ENCODING).split("\r\n")
    n_rooms, n_names, _, n_descriptions = (_number(data, 2 * i) for i in range(4))
    first = n_descriptions + n_names + n_rooms + VERBS
    yield from enumerate(said[first : first + REMARKS], 1)
    yield from enumerate(said[:n_descriptions], REMARKS + 1)


def _dialogue(data: bytes) -> Iterator[tuple[str, str]]:
    """(begin of its recordings' names, text) of each line of a .DOG file.

    Numbers: levels (negative: it cannot be left), own number, number in recordings' names, Joe's lines, the other's,
    six of conditions; then the places of the other's lines, of the following cutaway, and of later greetings.
    """
    levels, talk = abs(_number(data, 0)), _number(data, 4)
    places = {"J": 32 + 96 * levels, "P": _number(data, 22)}
    for who, n_lines in (("J", _number(data, 6)), ("P", _number(data, 8))):
        at = places[who]
        for _ in range(n_lines):
            node = _number(data, at + 2) & 0xFFFF
            text, at = _string(data, at + 4, align=4)
            yield f"{talk:02d}{node:04X}{who}", text
            if who == "J" and node == 0:
                yield f"{talk:02d}SSSSJ", text
    text, at = _string(data, _number(data, 26))
    yield f"{talk:02d}XXXXP", text
    yield f"{talk:02d}XXXXJ", _string(data, at)[0]


def _cutaway(data: bytes, people: set[int]) -> Iterator[tuple[int, bool, str]]:
    """(number, whether Joe says it, text) of the records of a .CUT file; its first string belongs to none.

    A record: 17 numbers (the object, the fifth: its pictures, the sixth: whether they move, the 13th: what it is
    replaced by), a count of objects and as many; of one that moves also frames of 10 numbers up to a -2.
    """
    at, (_, text_at) = 12, _string(data, _number(data, 8))
    for number in range(1, abs(_number(data, 2)) + 1):
        thing, pictures, moves, origin = (_number(data, at + 2 * i) for i in (0, 4, 5, 12))
        # -1: Joe, while the room fades in.
        thing = 0 if thing == -1 else thing
        at += 34
        at += 2 + 2 * _number(data, at)
        text, text_at = _string(data, text_at)
        yield number, thing == 0, text
        speaks = thing in (-2, -3, -4) or (not pictures and (thing == 0 or thing in people))
        if moves and origin <= 0 and not speaks:
            while _number(data, at) != -2:
                at += 20
            at += 2
