"""`muomni eval speech`: judge a run's speech on held-out sentences, write one JSON file and one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from muomni.data.audio import log_mel
from muomni.data.items import Split
from muomni.data.prepared import open_source
from muomni.evaluate.family import spread
from muomni.evaluate.judges import Panel
from muomni.evaluate.listening import Heard, Listening, Progress, listen
from muomni.evaluate.report import Sound
from muomni.evaluate.speech_page import Take, render_speech
from muomni.evaluate.speech_paths import WHAT
from muomni.evaluate.speech_speed import measure_speed
from muomni.files import replace
from muomni.infer.loading import find_stage
from muomni.infer.session import load

N_TIMED = 10
"""Clips the parts are timed on."""


def evaluate_speech(
    root: Path,
    panel: Panel,
    *,
    out: Path,
    data: str | None = None,
    split: Split = "test",
    n: int = 80,
    seeds: Sequence[int] = (0,),
    shown: int = 6,
    machine: str = "",
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Judge and time a run; write out/speech.json and out/speech.html, the latter with `shown` items to hear.

    data: prepared sets or embedded; None: what the codec stage was trained on.
    Returns what speech.json holds. Raises what `muomni.load` raises, PreparedDataError, UserError for no fit item.
    """
    session = load(root)
    data = data or find_stage(root, "codec").record["config"].get("data", "embedded")
    source = open_source(data)
    listening = listen(session, source, panel, split=split, n=n, seeds=seeds, progress=progress)
    timed = spread(range(len(listening.items)), N_TIMED)
    clips = [(listening.heard[i][0].waveform, listening.items[i].text) for i in timed]
    speed = measure_speed(session, clips, seed=seeds[0])
    result = {
        "run": str(root), "data": data, "split": split, "n": len(listening.items), "seeds": list(seeds),
        "judges": panel.about, "machine": machine,
        "figures": [figure.to_dict() for figure in listening.figures],
        "speed": [part.to_dict() for part in speed],
        "items": [
            {"id": item.id, "speaker": item.speaker, "text": item.text,
             "understood": {_name(h): h.text for h in own if h.text is not None}}
            for item, own in zip(listening.items, listening.heard, strict=True)
        ],
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    replace(out / "speech.json", json.dumps(result, indent=2) + "\n")
    replace(out / "speech.html", render_speech(result, _examples(listening, session.config.mel, shown)))
    return result


def _name(heard: Heard) -> str:
    """The path, with the seed where there is one."""
    return heard.path if heard.seed is None else f"{heard.path} seed {heard.seed}"


def _examples(listening: Listening, mel: Any, shown: int) -> list[tuple[str, str, list[Take]]]:
    found = []
    for i in spread(range(len(listening.items)), shown):
        takes = []
        for heard in listening.heard[i]:
            rows = log_mel(torch.from_numpy(heard.waveform.copy()), mel).numpy()
            what = WHAT[heard.path] + ("" if heard.seed is None else f", seed {heard.seed}")
            takes.append((what, Sound(waveform=heard.waveform, log_mel=rows), heard.text or ""))
        found.append((listening.items[i].id, listening.items[i].text, takes))
    return found
