"""English text: conversations between people from the chitchat dataset, cleaned."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

from muomni.data.sources.fetch import Package, fetch

CONVERSATIONS = Package(
    registry="pypi",
    name="chitchat-dataset",
    version="0.9.0",
    n_bytes=8_105_664,
    sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    licence="MIT",
    attribution="chitchat-dataset, Copyright (c) 2019 Perception, Control and Cognition Lab (BYU)",
    gives="conversations between people (text.jsonl.xz), filtered",
)
MAX_BYTES = 2_500_000
"""Text taken, in bytes."""

# Whole conversations with one of these word stems are left out: a crude filter, said in the attribution.
_UNWANTED = re.compile(
    r"\b(fuck|shit|cunt|bitch|nigg|fag|rape|porn|sex|dick|pussy|slut|whore|kill your|suicid|nazi|hitler|cock|penis|"
    r"ass\b|asshole|cum\b|fetish|erotic|dyke|tranny|kike|chink|spic\b|gook|coon\b|wetback|molest|incest|"
    r"vagina|retard|tits|boob|horny|nude|naked|drunk|weed|cocaine)",
    re.IGNORECASE,
)
_PRIVATE = re.compile(r"@|https?:|www\.|\.com|\d{5,}|\d{3}[-. ]\d{3,4}")


def split_of(identifier: str) -> str:
    """Split by hash of the conversation's id."""
    return {0: "test", 1: "validation"}.get(zlib.crc32(identifier.encode()) % 20, "train")


def clean(utterance: str) -> str:
    """One utterance on one line: plain ASCII quotes and dashes, single spaces."""
    table = {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."}
    text = "".join(table.get(c, c) for c in utterance)
    return " ".join(text.encode("ascii", "ignore").decode().split())


def items(cache: Path) -> list[dict[str, Any]]:
    """Conversations as lists of turns, in the order of a hash of their ids, up to MAX_BYTES.

    Left out whole: conversations with an unwanted word, an address, a link or a long number, fewer than
    four turns, or a turn of more than 400 characters.
    """
    data = json.loads(next(fetch(CONVERSATIONS, cache).rglob("dataset.json")).read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    size = 0
    for identifier in sorted(data, key=lambda name: zlib.crc32(f"order {name}".encode())):
        turns = [clean(" ".join(m["text"] for m in block)) for block in data[identifier]["messages"]]
        turns = [turn for turn in turns if turn]
        text = "\n".join(turns)
        if len(turns) < 4 or max(map(len, turns)) > 400 or text in seen:
            continue
        if _UNWANTED.search(text) or _PRIVATE.search(text):
            continue
        seen.add(text)
        size += len(text)
        if size > MAX_BYTES:
            break
        found.append({"id": identifier, "split": split_of(identifier), "turns": turns})
    return found
