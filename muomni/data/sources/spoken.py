"""Spoken questions about pictures, every wording in every voice; synthetic."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from muomni.data.sources import synthesis
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import fetch
from muomni.data.sources.questions import WORDINGS


def _find(cache: Path) -> Iterator[Found]:
    hibari, flite = (fetch(synthesis.HIBARI, cache),), synthesis.flite(cache)
    for kind, wordings in WORDINGS.items():
        for wording, split in wordings:
            for voice in synthesis.VOICES:
                folders = hibari if voice == "hibari" else flite
                yield Found(
                    kind="questions", id=f"spoken-questions/{kind}/{wording.replace(' ', '-')}/{voice}", group=wording,
                    payload=functools.partial(synthesis.opus, f"{wording}?", voice, folders), suffix=".ogg",
                    fields={"text": wording, "kind": kind, "voice": voice, "synthetic": True}, split=split,
                )  # fmt: skip


ADAPTERS: tuple[Adapter, ...] = (
    Adapter(
        name="spoken-questions", title="spoken questions about pictures, five synthetic voices", stages=("omni",),
        licence=synthesis.HIBARI.licence, find=_find,
        packages=(synthesis.HIBARI, synthesis.FLITE, synthesis.FLITE_VOICES),
    ),
)  # fmt: skip
