"""Spoken questions, synthetic: about pictures, every wording in every voice; and what words mean, from WordNet."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from muomni.data.sources import glosses, synthesis
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.asterisk import spoken_form
from muomni.data.sources.fetch import fetch
from muomni.data.sources.questions import WORDINGS

N_DEFINITIONS = 600
"""Words that are asked for."""
MAX_ANSWER = 70
"""Characters of an answer."""
_ASKED = re.compile(r"What (?:is|are) (?:an? )?[a-z]{3,9}\?")


def definitions(cache: Path) -> list[tuple[str, str, str]]:
    """(group, question, answer) of plain words with short answers, in the order of a hash."""
    found: list[tuple[str, str, str]] = []
    for one in glosses.find(cache):
        if one.kind == "conversations":
            asked, answer = one.fields["turns"]
            if _ASKED.fullmatch(asked) and len(answer) <= MAX_ANSWER:
                found.append((one.group, asked, answer))
    return sorted(found, key=lambda one: (zlib.crc32(f"spoken {one[1]}".encode()), one))[:N_DEFINITIONS]


def _find(cache: Path) -> Iterator[Found]:
    hibari, flite = (fetch(synthesis.HIBARI, cache),), synthesis.flite(cache)
    for i, (group, asked, answer) in enumerate(definitions(cache)):
        voice = synthesis.VOICES[i % len(synthesis.VOICES)]
        folders = hibari if voice == "hibari" else flite
        text = spoken_form(asked)
        yield Found(
            kind="questions", id=f"spoken-questions/definition/{text.replace(' ', '-')}/{voice}", group=group,
            payload=functools.partial(synthesis.spoken, asked, voice, folders), suffix=".flac",
            fields={"text": text, "kind": "definition", "voice": voice, "synthetic": True, "answer": answer},
        )  # fmt: skip
    for kind, wordings in WORDINGS.items():
        for wording, split in wordings:
            for voice in synthesis.VOICES:
                folders = hibari if voice == "hibari" else flite
                yield Found(
                    kind="questions", id=f"spoken-questions/{kind}/{wording.replace(' ', '-')}/{voice}", group=wording,
                    payload=functools.partial(synthesis.spoken, f"{wording}?", voice, folders), suffix=".flac",
                    fields={"text": wording, "kind": kind, "voice": voice, "synthetic": True}, split=split,
                )  # fmt: skip


ADAPTERS: tuple[Adapter, ...] = (
    Adapter(
        name="spoken-questions", title="spoken questions about pictures and words, synthetic", stages=("omni",),
        licence=synthesis.HIBARI.licence, find=_find, version=4,
        packages=(synthesis.HIBARI, synthesis.FLITE, synthesis.FLITE_VOICES, glosses.WORDNET),
    ),
)  # fmt: skip
