"""Held-out figures of the Talker: next codes and pace against unigrams, and the use of text and voice."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

from muomni.data.batch import to_device
from muomni.data.items import Split
from muomni.models.alignment import advances, walk
from muomni.models.script import MAX_ADVANCE
from muomni.train.stage import Figure
from muomni.train.stages.utterances import Utterance, collate

if TYPE_CHECKING:
    from muomni.train.stages.talker import TalkerStage


def unigram_nats(train: list[Utterance], held_out: list[Utterance], *, size: int) -> float:
    """Mean nats a code of the held-out utterances under each codebook's own frequencies, one added to every count."""
    codes = torch.cat([u.codes for u in train], dim=1)
    counts = torch.stack([torch.bincount(level, minlength=size) for level in codes]).float() + 1.0
    logs = (counts / counts.sum(-1, keepdim=True)).log()
    held = torch.cat([u.codes for u in held_out], dim=1)
    return -float(logs.gather(1, held).mean())


def unigram_advance(train: list[Utterance], held_out: list[Utterance]) -> float:
    """Mean nats a frame of how far the held-out utterances move on, by how often the training ones move so far."""
    seen, held = (torch.cat([advances(u.places) for u in made]) for made in (train, held_out))
    counts = torch.bincount(seen, minlength=MAX_ADVANCE + 1).float() + 1.0
    return -float((counts / counts.sum()).log()[held].mean())


def with_other_text(made: list[Utterance], *, factor: int) -> list[Utterance]:
    """Each utterance's codes with the text of the next one of about the same length, said in the same time."""
    order = sorted(range(len(made)), key=lambda i: len(made[i].text.characters))
    result = list(made)
    for rank, i in enumerate(order):
        other, n_frames = made[order[(rank + 1) % len(order)]], made[i].codes.shape[1]
        room = slice(0, MAX_ADVANCE * (n_frames - 1))
        times = (
            torch.cat([other.begins[:-1][room], other.begins[-1:]]) * made[i].begins[-1] // other.begins[-1]
        )
        text = dataclasses.replace(
            other.text, characters=other.text.characters[room], owners=other.text.owners[room]
        )
        result[i] = dataclasses.replace(
            made[i], text=text, begins=times, places=walk(times, n_frames, factor=factor)
        )
    return result


def with_other_voice(made: list[Utterance], n_voices: int) -> list[Utterance]:
    """Each utterance with the number of the next known speaker, the last one's next being the first."""
    return [dataclasses.replace(u, voice=u.voice % n_voices + 1) for u in made]


@torch.no_grad()
def nats(stage: TalkerStage, model: nn.Module, made: list[Utterance]) -> tuple[float, float]:
    """Mean nats a code, and a frame for how far to move on."""
    sums = {"first": 0.0, "depth": 0.0, "advance": 0.0}
    counts = dict(sums)
    for utterance in made:
        batch = to_device(collate([utterance], delay=stage.config.talker.delay), stage.device(model))
        for name, value in stage.losses(model, batch, "main").items():
            sums[name] += float(value)
        for name, value in stage.counts(batch).items():
            counts[name] += float(value)
    codes = (sums["first"] + sums["depth"]) / (counts["first"] + counts["depth"])
    return codes, sums["advance"] / counts["advance"]


def figures(stage: TalkerStage, model: nn.Module, split: Split) -> list[Figure]:
    """Code loss against unigrams, right against wrong text and voice; the loss of the pace against unigrams."""
    train, made, n_voices = stage.utterances("train"), stage.utterances(split), len(stage.speakers())
    right, pace = nats(stage, model, made)
    wrong, _ = nats(stage, model, with_other_text(made, factor=stage.config.codec.factor))
    unigram = unigram_nats(train, made, size=stage.config.codec.codebook_size)
    n = len(made)
    voices: list[Figure] = []
    if n_voices > 1:
        other, _ = nats(stage, model, with_other_voice(made, n_voices))
        voices = [
            Figure(
                name="code loss, right voice", value=right, baseline=other, baseline_name="another speaker's voice", n=n
            )
        ]  # fmt: skip
    return [
        *voices,
        Figure(
            name="code loss, mean of the codebooks", value=right, baseline=unigram,
            baseline_name="unigram of each codebook", n=n,
        ),
        Figure(
            name="code loss, right text", value=right, baseline=wrong, baseline_name="another item's text", n=n
        ),
        Figure(
            name="loss of the pace, nats a frame", value=pace, baseline=unigram_advance(train, made),
            baseline_name="unigram", n=n,
        ),
    ]  # fmt: skip
