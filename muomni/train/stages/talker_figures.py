"""Held-out figures of the Talker: next codes against unigrams, the text's use, and when it stops."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

from muomni.data.batch import to_device
from muomni.data.items import Split
from muomni.models.talker import Talker
from muomni.train.stage import Figure, part

if TYPE_CHECKING:
    from muomni.train.stages.talker import TalkerStage, Utterance


def unigram_nats(train: list[Utterance], held_out: list[Utterance], *, size: int) -> float:
    """Mean nats a code of the held-out utterances under each codebook's own frequencies, one added to every count."""
    codes = torch.cat([u.codes for u in train], dim=1)
    counts = torch.stack([torch.bincount(level, minlength=size) for level in codes]).float() + 1.0
    logs = (counts / counts.sum(-1, keepdim=True)).log()
    held = torch.cat([u.codes for u in held_out], dim=1)
    return -float(logs.gather(1, held).mean())


def with_other_text(made: list[Utterance]) -> list[Utterance]:
    """Each utterance's codes with the text of the next one of about the same number of subwords."""
    order = sorted(range(len(made)), key=lambda i: len(made[i].states))
    result = list(made)
    for rank, i in enumerate(order):
        other = made[order[(rank + 1) % len(order)]]
        n_frames = made[i].codes.shape[1]
        states, embeds = other.states[:n_frames], other.embeds[:n_frames]
        result[i] = dataclasses.replace(made[i], states=states, embeds=embeds)
    return result


def with_other_voice(made: list[Utterance], n_voices: int) -> list[Utterance]:
    """Each utterance with the number of the next known speaker, the last one's next being the first."""
    return [dataclasses.replace(u, voice=u.voice % n_voices + 1) for u in made]


@torch.no_grad()
def code_nats(stage: TalkerStage, model: nn.Module, made: list[Utterance]) -> tuple[float, list[int]]:
    """Mean nats a code, and the number of frames after which the Talker would stop in each utterance.

    One that would not stop within its recording counts as running to the longest clip there may be.
    """
    from muomni.train.stages.talker import collate

    device, talker = stage.device(model), part(model, "talker", Talker)
    nats = codes = 0.0
    stops: list[int] = []
    for utterance in made:
        batch = to_device(collate([utterance], delay=stage.config.talker.delay), device)
        out = stage.forward(model, batch)
        nats += float(talker.codes.cross_entropy(out["queries"], batch.labels)[0].sum())
        codes += batch.labels.numel()
        n_text = len(utterance.states)
        over = (out["stop"][n_text:] > 0).nonzero().flatten().tolist()
        stops.append(n_text + over[0] + 1 if over else stage.config.max_audio_tokens)
    return nats / codes, stops


def figures(stage: TalkerStage, model: nn.Module, split: Split) -> list[Figure]:
    """Code loss, right against wrong text and voice, and the error of the stop position under teacher forcing."""
    train, made = stage.utterances("train"), stage.utterances(split)
    right, stops = code_nats(stage, model, made)
    wrong, _ = code_nats(stage, model, with_other_text(made))
    unigram = unigram_nats(train, made, size=stage.config.codec.codebook_size)
    lengths = [u.codes.shape[1] for u in made]
    # The trivial guess: as many frames a subword as in the training recordings, over all.
    rate = sum(u.codes.shape[1] for u in train) / sum(len(u.states) for u in train)
    guessed = [round(rate * len(u.states)) for u in made]
    n = len(made)
    voices: list[Figure] = []
    if len(stage.speakers()) > 1:
        other, _ = code_nats(stage, model, with_other_voice(made, len(stage.speakers())))
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
            name="stop position error, frames", value=_error(stops, lengths), baseline=_error(guessed, lengths),
            baseline_name="mean frames a subword", n=n,
        ),
    ]  # fmt: skip


def _error(found: list[int], lengths: list[int]) -> float:
    return sum(abs(a - b) for a, b in zip(found, lengths, strict=True)) / len(lengths)
