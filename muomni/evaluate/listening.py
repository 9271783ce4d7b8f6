"""What independent judges hear on every path of speech: error rates, opinion scores, voices, spectral distance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, SupportsFloat

import numpy as np

from muomni.data.items import Source, SpeechItem, Split
from muomni.errors import UserError
from muomni.evaluate.family import spread
from muomni.evaluate.judges import Panel
from muomni.evaluate.scored_text import scored_form
from muomni.evaluate.speech import recordings
from muomni.evaluate.speech_paths import ORIGINAL, SAY, resynthesis
from muomni.infer.session import Session
from muomni.metrics.edit import Unit, error_rate
from muomni.metrics.intervals import bootstrap_interval
from muomni.metrics.stft import multi_resolution_distance

N_WORDS = (3, 30)
"""Words of a sentence that is judged: recognisers guess at shorter ones, and the goals are for these."""
WITHIN = 0.5
"""Seconds by which speech may end before or after the recording."""
Better = Literal["lower", "higher"]
METRICS: dict[str, tuple[str, str, Better]] = {
    "cer": ("character error rate", "errors/character", "lower"),
    "wer": ("word error rate", "errors/word", "lower"),
    "mos": ("predicted opinion score", "1 to 5", "higher"),
    "speaker": ("speaker similarity to the recording", "cosine", "higher"),
    "other_voice": ("speaker similarity to it, said by another voice", "cosine", "lower"),
    "ends": (f"ends within {WITHIN} s of the recording", "share", "higher"),
    "stft": ("multi-resolution STFT distance", "nepers and ratio", "lower"),
    "same_speaker": ("similarity to another recording of the speaker", "cosine", "higher"),
    "other_speaker": ("similarity to a recording of another speaker", "cosine", "lower"),
}
"""Name -> in words, unit, which direction is better."""
Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, what is heard)."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One cell of the table."""

    path: str
    metric: str
    value: float
    interval: tuple[float, float]
    """95 % bootstrap interval, items resampled; all seeds of an item stay together."""
    n: int
    """Held-out items."""
    seeds: tuple[int, ...]
    """Seeds of the Talker; empty for a path that draws nothing."""
    unit: str
    better: Better

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"interval": list(self.interval), "seeds": list(self.seeds)}


@dataclass(frozen=True, kw_only=True)
class Heard:
    """An item on one path."""

    path: str
    waveform: np.ndarray
    """(n_samples,) float32 at 16 kHz."""
    text: str | None
    """What the recogniser understood; None when it was not asked."""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Everything that was judged."""

    figures: list[Judged]
    items: list[SpeechItem]
    heard: list[list[Heard]]
    """Of each item, path by path, the recording first; `say` once a seed."""


def chosen_items(session: Session, source: Source, *, split: Split, n: int) -> list[SpeechItem]:
    """At most n items of a split, as evenly as can be of each speaker: English, of N_WORDS words, that fit the context.

    Raises UserError when there is none.
    """
    fitting = [
        item
        for item in recordings(session.config, source, split)
        if item.language == "en"
        and N_WORDS[0] <= len(scored_form(item.text).split()) <= N_WORDS[1]
        and len(session.tokenizer.encode(item.text)) <= session.config.max_audio_tokens
    ]
    if not fitting:
        raise UserError(
            f"data: no recording of {N_WORDS[0]} to {N_WORDS[1]} words in split {split} fits the model; "
            "name other sets with --data."
        )
    return _even(fitting, n)


def _even(items: Sequence[SpeechItem], n: int) -> list[SpeechItem]:
    """n items in their order, the same number of each speaker as far as there are; a speaker's spread over his own."""
    own: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        own[item.speaker].append(i)
    shares = dict.fromkeys(own, 0)
    while sum(shares.values()) < min(n, len(items)):
        for speaker in own:
            shares[speaker] += shares[speaker] < len(own[speaker]) and sum(shares.values()) < n
    chosen = [own[speaker][k] for speaker in own for k in spread(range(len(own[speaker])), shares[speaker])]
    return [items[i] for i in sorted(chosen)]


def listen(
    session: Session,
    source: Source,
    panel: Panel,
    *,
    split: Split = "test",
    n: int = 80,
    seeds: Sequence[int] = (0,),
    bootstrap_seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> Listening:
    """Make every path's sound of every item and have it judged. seeds: of `Session.speak`.

    Raises UserError when no item is fit to be judged.
    """
    items = chosen_items(session, source, split=split, n=n)
    paths = resynthesis(session)
    tally = _Tally()
    heard: list[list[Heard]] = []
    voices: list[np.ndarray] = []
    for done, item in enumerate(items):
        progress(done, len(items), item.id)
        original = source.waveform(item)
        takes: dict[str, list[tuple[int | None, np.ndarray]]] = {
            name: [(None, path(original))] for name, path in paths.items()
        }
        voice, other = _voices(session, item.speaker)
        takes[SAY] = [(seed, session.speak(item.text, voice=voice, seed=seed).waveform) for seed in seeds]
        near = [
            abs(len(said) - len(original)) <= WITHIN * session.config.mel.sample_rate
            for _, said in takes[SAY]
        ]
        tally.note(SAY, "ends", np.mean(near))
        if panel.voice is not None:
            voices.append(panel.voice(original))
            if other is not None:
                said = panel.voice(session.speak(item.text, voice=other, seed=seeds[0]).waveform)
                tally.note(SAY, "other_voice", said @ voices[-1])
        heard.append([])
        for name, sounds in takes.items():
            waveforms = [waveform for _, waveform in sounds]
            texts = _understood(panel, waveforms, scored_form(item.text), tally, name)
            if panel.mos is not None:
                tally.note(name, "mos", np.mean([panel.mos(waveform) for waveform in waveforms]))
            if panel.voice is not None and name != ORIGINAL:
                similar = [panel.voice(waveform) @ voices[-1] for waveform in waveforms]
                tally.note(name, "speaker", np.mean(similar))
            if name not in (ORIGINAL, SAY):
                tally.note(name, "stft", multi_resolution_distance(original, waveforms[0]))
            heard[-1] += [
                Heard(path=name, waveform=waveform, text=text, seed=seed)
                for (seed, waveform), text in zip(sounds, texts, strict=True)
            ]
    for metric, pairs in _pairs(items).items() if voices else ():
        for a, b in pairs:
            tally.note(ORIGINAL, metric, voices[a] @ voices[b])
    progress(len(items), len(items), "done")
    figures = [
        judged(
            name, metric, tally.sums[name, metric], tally.units[name, metric],
            seeds=tuple(seeds) if name == SAY else (), bootstrap_seed=bootstrap_seed,
        )
        for name in (*paths, SAY) for metric in METRICS if (name, metric) in tally.sums
    ]  # fmt: skip
    return Listening(figures=figures, items=items, heard=heard)


def _voices(session: Session, speaker: str) -> tuple[str | None, str | None]:
    """The speaker's voice and the next one; None where there is none."""
    known = session.voices
    if speaker not in known:
        return None, None
    other = known[(known.index(speaker) + 1) % len(known)]
    return speaker, other if other != speaker else None


class _Tally:
    """Sums and units of every item, by path and metric."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.units: dict[tuple[str, str], list[float]] = defaultdict(list)

    def note(self, path: str, metric: str, total: SupportsFloat, weight: float = 1.0) -> None:
        self.sums[path, metric].append(float(total))
        self.units[path, metric].append(weight)


def _understood(
    panel: Panel, waveforms: Sequence[np.ndarray], reference: str, tally: _Tally, path: str
) -> list[str | None]:
    """What the recogniser writes for one item's waveforms, whose errors are noted; None where it is not asked."""
    if panel.recognise is None:
        return [None] * len(waveforms)
    texts = [panel.recognise(waveform) for waveform in waveforms]
    pairs: tuple[tuple[str, Unit], ...] = (("cer", "char"), ("wer", "word"))
    for metric, unit in pairs:
        rate = error_rate([reference] * len(texts), [scored_form(text) for text in texts], unit)
        tally.note(path, metric, rate.errors, rate.n)
    return [*texts]


def judged(
    path: str,
    metric: str,
    sums: Sequence[float],
    units: Sequence[float],
    *,
    seeds: tuple[int, ...] = (),
    bootstrap_seed: int = 0,
) -> Judged:
    """A pooled figure: sum(sums) / sum(units) over items, never a mean of an error rate's items."""
    _, unit, better = METRICS[metric]
    return Judged(
        path=path, metric=metric, value=float(np.sum(sums) / np.sum(units)),
        interval=bootstrap_interval(sums, units, seed=bootstrap_seed), n=len(sums), seeds=seeds, unit=unit,
        better=better,
    )  # fmt: skip


def _pairs(items: Sequence[SpeechItem]) -> dict[str, list[tuple[int, int]]]:
    """Each item with the next one of its speaker, and with the next one of another; cyclically, where there is one."""
    found: dict[str, list[tuple[int, int]]] = {"same_speaker": [], "other_speaker": []}
    for i, item in enumerate(items):
        others = [(i + k) % len(items) for k in range(1, len(items))]
        for metric, same in (("same_speaker", True), ("other_speaker", False)):
            match = next((o for o in others if (items[o].speaker == item.speaker) is same), None)
            if match is not None:
                found[metric].append((i, match))
    return found
