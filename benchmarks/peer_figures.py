"""What `peer_encoders` measures: a peer and our encoder on the same held-out items, and by how much they differ.

Items, figures and intervals are those of `muomni.evaluate` (asr: the CTC head; retrieval: both directions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peer_models import ClipPeer, CtcPeer
from muomni.data.audio import decode_ctc, log_mel, normalise, normalise_transcript
from muomni.data.items import PictureItem, SpeechItem, Split
from muomni.errors import UserError
from muomni.evaluate.asr import UNITS
from muomni.evaluate.family import spread
from muomni.evaluate.figure import ratio
from muomni.evaluate.retrieval import FIRST, GROUP, MAX_PICTURES, embedded_captions, embedded_pictures
from muomni.metrics.edit import best_constant_error_rate, error_rate
from muomni.metrics.intervals import bootstrap_interval
from muomni.metrics.retrieval import recall
from muomni.models.vision import ContrastModel
from muomni.train.stages.audio import AudioStage
from muomni.train.stages.vision import VisionStage

Spell = Callable[[torch.Tensor], str]
"""Normalised log-mel (n_frames, n_mels) of a clip -> what is said in it."""
Sides = tuple[torch.Tensor, torch.Tensor]
"""Unit rows of pictures and of their captions."""


def our_spelling(stage: AudioStage, model: nn.Module) -> Spell:
    """Our CTC head's greedy transcript. model: in eval mode."""

    @torch.inference_mode()
    def spell(mel: torch.Tensor) -> str:
        n_frames = -(-len(mel) // stage.config.audio.factor)
        batch = stage.collate([mel], [""], capacity=n_frames, n_items=1)
        return decode_ctc(stage.logits(model, batch).argmax(-1).tolist())

    return spell


def speech_items(stage: AudioStage, split: Split, n: int) -> list[SpeechItem]:
    """At most n recordings that fit, as `muomni.evaluate` takes them. Raises UserError where there are none."""
    items = stage.source.speech(split)
    chosen = spread([item for item in items if item.n_samples <= stage.config.max_audio_samples], n)
    if not chosen:
        raise UserError(
            f"data: {stage.run.data} has no recording in split {split} that fits; name other --data."
        )
    return chosen


def clip_of(stage: AudioStage, item: SpeechItem) -> torch.Tensor:
    """Its normalised log-mel (n_frames, n_mels)."""
    return normalise(log_mel(stage.source.waveform(item), stage.config.mel), stage.config.mel)


def transcripts(stage: AudioStage, items: Sequence[SpeechItem], spells: Sequence[Spell]) -> list[list[str]]:
    """What each of `spells` understands of every recording."""
    found: list[list[str]] = [[] for _ in spells]
    for item in items:
        mel = clip_of(stage, item)
        for own, spell in zip(found, spells, strict=True):
            own.append(spell(mel))
    return found


def speech_figures(
    references: Sequence[str], *, peer: Sequence[str], ours: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """CER and WER of both on the same recordings, against the best constant transcript."""
    figures = []
    for unit, word in UNITS:
        rates = [
            [error_rate([r], [h], unit) for r, h in zip(references, said, strict=True)]
            for said in (peer, ours)
        ]
        figures.append(
            both(
                f"{unit}_error_rate", f"speech recognition: {word} error rate (CTC, greedy)",
                sums=[[rate.errors for rate in own] for own in rates], units=[rate.n for rate in rates[0]],
                baseline=best_constant_error_rate(references, unit).value, baseline_name="best constant transcript",
                better="lower", unit=f"errors/{word}", seed=seed,
            )
        )  # fmt: skip
    return figures


def our_sides(stage: VisionStage, model: ContrastModel, items: Sequence[PictureItem]) -> Sides:
    """Pictures and captions in our contrast's space. model: in eval mode."""
    captions = [(item.label, *item.tags) for item in items]
    pictures = embedded_pictures(model, items, stage.source)
    return pictures, embedded_captions(model, stage.tokenizer, captions)


def picture_items(stage: VisionStage, split: Split) -> list[PictureItem]:
    """At most MAX_PICTURES pictures, as `muomni.evaluate` takes them. Raises UserError for fewer than two."""
    items = spread(stage.source.pictures(split), MAX_PICTURES)
    if len(items) < 2:
        raise UserError(
            f"data: {stage.run.data} has {len(items)} pictures in split {split}; name other --data."
        )
    return items


def retrieval_figures(
    *, peer: Sides, ours: Sides, seed: int, alike: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """R@1 and R@5 of GROUP of both in both directions, against chance. alike: as `recall` takes it."""
    scores = [(pictures @ captions.T).float().numpy() for pictures, captions in (peer, ours)]
    figures = []
    for name, turned in (("picture to caption", False), ("caption to picture", True)):
        for k in FIRST:
            found = [recall(s.T if turned else s, k=k, group=GROUP, alike=alike) for s in scores]
            figures.append(
                both(
                    f"{name.replace(' ', '_')}.at_{k}",
                    f"pictures: {name}, among the first {k} of {found[0].group}, unseen concepts",
                    sums=[own.per_query for own in found], units=np.ones(found[0].n), baseline=found[0].chance,
                    baseline_name="chance", better="higher", unit="share", seed=seed,
                )
            )  # fmt: skip
    return figures


def both(
    name: str, what: str, *, sums: Sequence[Any], units: Sequence[float] | np.ndarray, seed: int, **about: Any
) -> dict[str, Any]:
    """One figure of peer and ours, sums[0] and sums[1] over `units`, and what the peer's is more, items in pairs."""
    own = [ratio(name, what, sums=one, units=units, seed=seed, **about) for one in sums]
    low, high = bootstrap_interval(np.subtract(sums[0], sums[1]), units, seed=seed)
    return {
        "name": name, "what": what, "peer": own[0].to_dict(), "ours": own[1].to_dict(),
        "peer_less_ours": own[0].value - own[1].value, "peer_less_ours_95": [low, high],
    }  # fmt: skip


@torch.inference_mode()
def validation_loss(peer: CtcPeer | ClipPeer, *, n: int) -> float:
    """What rates are chosen by: the peer's own loss on at most n clips, or the pictures, of the validation split.

    The model is in eval mode. It is smoother than error rates, which differ little while little is learned.
    """
    if isinstance(peer, ClipPeer):
        items = picture_items(peer.stage, "validation")
        batches = [peer.inputs(items[start : start + GROUP]) for start in range(0, len(items), GROUP)]
    else:
        batches = [
            peer.collate([clip_of(peer.stage, item)], [normalise_transcript(item.text)])
            for item in speech_items(peer.stage, "validation", n)
        ]
    return float(np.mean([float(peer.loss(batch)) for batch in batches]))
