"""Spoken questions for the omni turn, synthesised in five voices and labelled synthetic.

No recording of a person asking about a picture is to be had under a licence that allows its
redistribution; see docs/data.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from muomni.data.items import Split
from muomni.data.sources.fetch import fetch
from muomni.data.sources.sound import trim
from muomni.data.sources.synthesis import HIBARI, VOICES, flite, speak_flite, speak_hibari

# (wording, split): a wording stands in one split, so a held-out question was never heard.
WORDINGS: dict[str, tuple[tuple[str, Split], ...]] = {
    "name": (
        ("what is this", "train"),
        ("what do you see", "train"),
        ("what does the picture show", "train"),
        ("name this picture", "train"),
        ("tell me what this is", "train"),
        ("what can you see in this picture", "train"),
        ("can you name this", "train"),
        ("what am i looking at", "train"),
        ("please name the picture", "validation"),
        ("what is in this picture", "test"),
        ("tell me what you see", "test"),
    ),
    "group": (
        ("what kind of thing is this", "train"),
        ("which kind is it", "train"),
        ("what group does this belong to", "train"),
        ("which group is this", "train"),
        ("what category is it", "train"),
        ("tell me the category", "train"),
        ("what sort of thing is it", "train"),
        ("which category does this belong to", "train"),
        ("what kind is this", "validation"),
        ("which group does it belong to", "test"),
        ("what category is this", "test"),
    ),
}


def items(cache: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Records and waveforms: every wording in every voice."""
    folder, engine = fetch(HIBARI, cache), flite(cache)
    found: list[tuple[dict[str, Any], np.ndarray]] = []
    for kind, wordings in WORDINGS.items():
        for wording, split in wordings:
            for voice in VOICES:
                if voice == "hibari":
                    waveform = speak_hibari(f"{wording}?", folder)
                else:
                    waveform = speak_flite(f"{wording}?", voice, *engine)
                waveform = trim(waveform) * (0.5 / np.abs(waveform).max())
                record = {
                    "id": f"question/{kind}/{wording.replace(' ', '-')}/{voice}",
                    "text": wording,
                    "kind": kind,
                    "voice": voice,
                    "synthetic": True,
                    "split": split,
                    "n_samples": len(waveform),
                }
                found.append((record, waveform.astype(np.float32)))
    return found
