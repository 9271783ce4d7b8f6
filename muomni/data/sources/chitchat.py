"""English text: conversations between people from the chitchat dataset, cleaned."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import Package, fetch
from muomni.data.splits import split_of

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
"""Text taken into the embedded set, in bytes."""

# Whole conversations with one of these word stems are left out: a crude filter, said in the attribution.
_UNWANTED = re.compile(
    r"\b(fuck|shit|cunt|bitch|nigg|fag|rape|porn|sex|dick|pussy|slut|whore|kill your|suicid|nazi|hitler|cock|penis|"
    r"ass\b|asshole|cum\b|fetish|erotic|dyke|tranny|kike|chink|spic\b|gook|coon\b|wetback|molest|incest|"
    r"vagina|retard|tits|boob|horny|nude|naked|drunk|weed|cocaine)",
    re.IGNORECASE,
)
_PRIVATE = re.compile(r"@|https?:|www\.|\.com|\d{5,}|\d{3}[-. ]\d{3,4}")


def clean(utterance: str) -> str:
    """One utterance on one line: plain ASCII quotes and dashes, single spaces."""
    table = {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."}
    text = "".join(table.get(c, c) for c in utterance)
    return " ".join(text.encode("ascii", "ignore").decode().split())


def is_unwanted(text: str) -> bool:
    """Whether it holds a word that is kept out of every set: slurs, sexual words, drugs. It does not judge meaning."""
    return _UNWANTED.search(text) is not None


def _cleaned(cache: Path) -> Iterator[tuple[str, list[str]]]:
    """Ids and turns of every conversation that is kept, in the order of a hash of their ids.

    Left out whole: conversations with an unwanted word, an address, a link or a long number, fewer than
    four turns, a turn of more than 400 characters, or the text of one before.
    """
    data = json.loads(next(fetch(CONVERSATIONS, cache).rglob("dataset.json")).read_text(encoding="utf-8"))
    seen: set[str] = set()
    for identifier in sorted(data, key=lambda name: zlib.crc32(f"order {name}".encode())):
        turns = [clean(" ".join(m["text"] for m in block)) for block in data[identifier]["messages"]]
        turns = [turn for turn in turns if turn]
        text = "\n".join(turns)
        if len(turns) < 4 or max(map(len, turns)) > 400 or text in seen:
            continue
        if is_unwanted(text) or _PRIVATE.search(text):
            continue
        seen.add(text)
        yield identifier, turns


def items(cache: Path) -> list[dict[str, Any]]:
    """The embedded set's part: conversations as lists of turns, up to MAX_BYTES."""
    found: list[dict[str, Any]] = []
    size = 0
    for identifier, turns in _cleaned(cache):
        size += len("\n".join(turns))
        if size > MAX_BYTES:
            break
        found.append({"id": identifier, "split": split_of("conversations", identifier), "turns": turns})
    return found


def find(cache: Path) -> Iterator[Found]:
    """All of them; in the embedded set's splits, since both hash the same id."""
    for identifier, turns in _cleaned(cache):
        yield Found(
            kind="conversations",
            id=f"chitchat/{identifier}",
            group=identifier,
            fields={"turns": tuple(turns)},
        )


ADAPTERS = (
    Adapter(
        name="chitchat",
        title="conversations between people",
        stages=("text", "omni"),
        licence="MIT",
        find=find,
        packages=(CONVERSATIONS,),
    ),
)
