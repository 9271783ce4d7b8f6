"""Recordings with the texts they say, and how they lie in the Talker's batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional as F

from muomni.data.batch import HOST, Batch, cumulative
from muomni.models.alignment import advances
from muomni.models.script import WINDOW, Text
from muomni.tokens import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording with the text it says."""

    log_mel: torch.Tensor
    """(n_frames, n_mels) float32, normalised."""
    codes: torch.Tensor
    """(K, T) int64."""
    text: Text
    """What is said."""
    begins: torch.Tensor
    """(m + 1,) int64: the log-mel frame each character begins in, and the end of the last."""
    places: torch.Tensor
    """(T,) int64: the character at every frame, of `walk`."""
    speaker: str
    voice: int = 0
    """Number of the speaker, 1 for the most frequent; 0 for nobody in particular; -1 for whoever `heard` tells of."""
    heard: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """(2 * n_mels,) float32: what a voice is told by, of a recording of the speaker; empty for none."""
    noise: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    """(K, T) int64: the codes that the Talker is told came before, where they are not the true ones; empty for none."""
    deep: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """(T,) bool: the frames whose codebooks 1.. are trained; empty for all."""


@dataclass(frozen=True, kw_only=True)
class SpokenBatch(Batch):
    """Utterances one after another; N steps, the same number in every training batch: a step for each frame, and
    `delay` more behind the last one of an utterance, in which its last frame becomes whole."""

    codes: torch.Tensor
    """(N, K) int64 of the frame of each step, 0 where there is none."""
    labels: torch.Tensor
    """(N, 1) int64: codebook 0, IGNORE_INDEX where there is no frame."""
    deep: torch.Tensor
    """(M,) int64: the steps whose codebooks 1.. are trained; padding of any."""
    deep_labels: torch.Tensor
    """(M, K - 1) int64: these codes, IGNORE_INDEX for padding."""
    told: torch.Tensor
    """(N, K) int64: the codes as the frame after each is told of them, some of them replaced."""
    voice: torch.Tensor
    """(n,) int64: who speaks each utterance, as `Voices` numbers them."""
    heard: torch.Tensor
    """(n, 2 * n_mels): what a voice is told by."""
    utterance: torch.Tensor
    """(N,) int64: the utterance of each frame; of padding any."""
    states: torch.Tensor
    """(N, d_thinker): Thinker state of the subword that is being said, zeros at the end of the text."""
    embeds: torch.Tensor
    """(N, d_thinker): token embeddings at the same places."""
    around: torch.Tensor
    """(N, WINDOW) int64: the characters around the place, of `windows`."""
    waited: torch.Tensor
    """(N,) int64: frames for which it has been the place."""
    advance: torch.Tensor
    """(N,) int64: characters from a frame's place to the next one's, 1 in the last; IGNORE_INDEX where no frame is."""
    positions: torch.Tensor
    """(N,) int64, starting at 0 in every utterance."""
    cu_seqlens: torch.Tensor
    """int32; segment i < n is utterance i, the rest is padding."""
    max_seqlen: int
    """Longest utterance there may be, frames."""
    n_frames: int = field(metadata=HOST)
    """Frames."""
    n_steps: int = field(metadata=HOST)
    """Steps that are not padding."""


def spread(made: list[Utterance], share: float, luck: float) -> list[Utterance]:
    """A share of all frames, at even distances one utterance after another, made `deep`; luck in [0, 1): which ones."""
    ends = torch.tensor([u.codes.shape[1] for u in made]).cumsum(0).tolist()
    is_deep = torch.zeros(ends[-1], dtype=torch.bool)
    at = ((torch.arange(math.ceil(ends[-1] * share), dtype=torch.float64) + luck) / share).long()
    is_deep[at[at < ends[-1]]] = True
    return [replace(u, deep=is_deep[end - u.codes.shape[1] : end]) for u, end in zip(made, ends, strict=True)]


def collate(
    made: list[Utterance],
    *,
    delay: int,
    n_steps: int | None = None,
    n_items: int | None = None,
    longest: int = 0,
    depth_share: float = 1.0,
) -> SpokenBatch:
    """Lay utterances one after another into n_steps steps, by default as many as they take.

    delay: steps that each takes beyond its frames (TalkerConfig.delay); depth_share: what share of the frames is
    `deep`, by which the room for them is made. Raises ValueError when they do not fit.
    """
    lengths = [u.codes.shape[1] + delay for u in made]
    used, longest = sum(lengths), max(longest, *lengths)
    total = used if n_steps is None else n_steps
    cu_seqlens = cumulative(lengths, n_max=n_items or len(made), total=total, longest=longest)
    n_levels, width = made[0].codes.shape[0], made[0].text.states.shape[1]
    codes, told = (torch.zeros(total, n_levels, dtype=torch.int64) for _ in range(2))
    states, embeds = torch.zeros(total, width), torch.zeros(total, width)
    around, waited = torch.zeros(total, WINDOW, dtype=torch.int64), torch.zeros(total, dtype=torch.int64)
    advance, is_deep = torch.full((total,), IGNORE_INDEX), torch.zeros(total, dtype=torch.bool)
    n_rooms, n_heard = n_items or len(made), 2 * made[0].log_mel.shape[1]
    voice, heard = torch.zeros(n_rooms, dtype=torch.int64), torch.zeros(n_rooms, n_heard)
    start = 0
    for i, (utterance, length) in enumerate(zip(made, lengths, strict=True)):
        end = start + length - delay
        codes[start:end] = utterance.codes.T
        told[start:end] = (utterance.noise if utterance.noise.numel() else utterance.codes).T
        advance[start:end] = advances(utterance.places)
        is_deep[start:end] = utterance.deep if utterance.deep.numel() else True
        # In the steps behind the last frame it stays at the end.
        places = F.pad(utterance.places, (0, delay), value=len(utterance.text.characters))
        own = slice(start, start + length)
        states[own], embeds[own], around[own], waited[own] = utterance.text.at(places)
        voice[i] = utterance.voice
        if utterance.heard.numel():
            heard[i] = utterance.heard
        start += length
    sizes = cu_seqlens.diff()
    positions = torch.arange(total) - cu_seqlens[:-1].long().repeat_interleave(sizes)
    segments = torch.arange(len(sizes)).clamp(max=n_rooms - 1)
    is_frame = (advance != IGNORE_INDEX)[:, None]
    chosen = is_deep.nonzero()[:, 0]
    # Frames chosen at even distances: in any stretch of L one more than this at most.
    deep = torch.zeros(min(total, int(total * depth_share) + 1), dtype=torch.int64)
    deep_labels = torch.full((len(deep), n_levels - 1), IGNORE_INDEX)
    deep[: len(chosen)] = chosen
    deep_labels[: len(chosen)] = codes[chosen, 1:]
    return SpokenBatch(
        codes=codes, labels=codes[:, :1].masked_fill(~is_frame, IGNORE_INDEX), told=told, voice=voice, heard=heard,
        deep=deep, deep_labels=deep_labels,
        utterance=segments.repeat_interleave(sizes), states=states, embeds=embeds, around=around, waited=waited,
        advance=advance, positions=positions, cu_seqlens=cu_seqlens, max_seqlen=longest,
        n_frames=used - delay * len(made), n_steps=used,
    )  # fmt: skip
