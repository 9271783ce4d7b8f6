"""A finished speedrun as one row of the table in docs/speedrun.md. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SHOWN: tuple[tuple[str, str, float, str], ...] = (
    ("bits per byte (bigram)", "text.bits_per_byte.bigram", 1, ".3f"),
    ("ASR CER, % (constant)", "asr.char_error_rate", 100, ".1f"),
    ("retrieval R@1, % (chance)", "retrieval.picture_to_caption", 100, ".1f"),
    ("codec, nepers (mean frame)", "codec.mel_error.8", 1, ".3f"),
    ("kind of a picture by voice, % (most common)", "answer.group_accuracy.spoken", 100, ".1f"),
    ("CER of the Thinker's transcripts, % (constant)", "asr.thinker.char_error_rate", 100, ".1f"),
    ("next code, nats (unigram)", "talker.next_code", 1, ".3f"),
    ("right text saves, nats", "talker.text_used", 1, ".3f"),
)
"""Heading, figure, factor and format; the baseline follows in brackets where the heading names one."""


def header() -> list[str]:
    """The first two lines of the table."""
    names = [
        "date",
        "size",
        "data",
        "minutes (used)",
        "device",
        "commit",
        *(heading for heading, *_ in SHOWN),
    ]
    return [_row(names), "|" + "---|" * len(names)]


def record_line(record: Mapping[str, Any]) -> str:
    """A record (RUN/record.json) as a row of the table."""
    figures = {row["name"]: row for row in record["figures"]}
    used = f"{record['minutes']:g} ({record['seconds'] / 60:.1f})"
    if record["calls"] > 1:
        used += f", in {record['calls']} calls"
    cells = [record["date"], record["size"], record["data"], used, record["device"], record["commit"]]
    for heading, name, factor, form in SHOWN:
        row = figures.get(name)
        if row is None:
            cells.append("not measured")
            continue
        value = f"{row['value'] * factor:{form}}"
        cells.append(f"{value} ({row['baseline'] * factor:{form}})" if heading.endswith(")") else value)
    return _row(cells)


def record_name(record: Mapping[str, Any]) -> str:
    """The file that a record is committed as, in docs/speedrun."""
    device = re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
    return f"{record['date']}_{record['size']}_{device}_{record['commit']}.json"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
