"""Spoken questions for the omni turn, synthesised in five voices and labelled synthetic.

No recording of a person asking about a picture is to be had under a licence that allows its
redistribution; see docs/data.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from muomni.data import wordings
from muomni.data.items import Split
from muomni.data.sources.fetch import fetch
from muomni.data.sources.sound import trim
from muomni.data.sources.synthesis import HIBARI, VOICES, flite, speak_flite, speak_hibari

WORDINGS: dict[str, tuple[tuple[str, Split], ...]] = {
    kind: wordings.WORDINGS[kind] for kind in ("name", "group")
}
"""(wording, split) of each kind that is spoken: those that are typed."""


def items(cache: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Records and waveforms: every wording in every voice."""
    folder, engine = fetch(HIBARI, cache), flite(cache)
    found: list[tuple[dict[str, Any], np.ndarray]] = []
    for kind, asked in WORDINGS.items():
        for wording, split in asked:
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
