"""Stage talker: from the Thinker's states over an answer to the codes of its recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import RunConfig
from muomni.data.audio import log_mel, normalise, stack_frames
from muomni.data.batch import HOST, Batch, Order, cumulative, pack
from muomni.data.examples import Example, Places, documents, fitting
from muomni.data.items import Item, SpeechItem, Split
from muomni.data.template import Document
from muomni.data.usable import Usable
from muomni.data.wordings import SAY
from muomni.models.codec import Codec
from muomni.models.talker import Talker, summary
from muomni.models.thinker import Thinker
from muomni.tokens import IGNORE_INDEX
from muomni.train.losses import n_targets
from muomni.train.stage import Figure, Parts, StageBase, freeze, generator, load_parent, part
from muomni.train.stages.spoken_samples import talker_samples
from muomni.train.stages.talker_figures import figures
from muomni.train.stages.text import load_tokenizer

STOP_WEIGHT = 0.2
"""Weight of the stop loss, which is summed over every frame as the code loss is over every code."""
GAIN = 0.1
"""Standard deviation of the loudness change of training recordings, normalised log-mel units."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording with the text it says."""

    log_mel: torch.Tensor
    """(n_frames, n_mels) float32, normalised."""
    codes: torch.Tensor
    """(K, T) int64."""
    states: torch.Tensor
    """(n, d_thinker) Thinker states over the text's positions."""
    embeds: torch.Tensor
    """(n, d_thinker) token embeddings of the same positions."""
    speaker: str
    voice: int = 0
    """Number of the speaker, 1 for the most frequent; 0 for nobody in particular; -1 for whoever `heard` tells of."""
    heard: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """(2 * n_mels,) float32: what a voice is told by, of a recording of the speaker; empty for none."""
    noise: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    """(K, T) int64: the codes that the Talker is told came before, where they are not the true ones; empty for none."""


@dataclass(frozen=True, kw_only=True)
class SpokenBatch(Batch):
    """Utterances one after another; N steps, the same number in every training batch: a step for each frame, and
    `delay` more behind the last one of an utterance, in which its last frame becomes whole."""

    codes: torch.Tensor
    """(N, K) int64 of the frame of each step, 0 where there is none."""
    labels: torch.Tensor
    """(N, K) int64: the codes, IGNORE_INDEX where there is no frame."""
    told: torch.Tensor
    """(N, K) int64: the codes as the frame after each is told of them, some of them replaced."""
    voice: torch.Tensor
    """(n,) int64: who speaks each utterance, as `Voices` numbers them."""
    heard: torch.Tensor
    """(n, 2 * n_mels): what a voice is told by."""
    utterance: torch.Tensor
    """(N,) int64: the utterance of each frame; of padding any."""
    states: torch.Tensor
    """(N, d_thinker): Thinker state of text position t at frame t of its utterance, else zeros."""
    embeds: torch.Tensor
    """(N, d_thinker): token embeddings at the same places."""
    is_text: torch.Tensor
    """(N,) bool: where there is a text position."""
    is_last: torch.Tensor
    """(N,) bool: the last frame of each utterance."""
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


class TalkerStage(StageBase):
    """Codes of every frame, teacher-forced, and when to stop."""

    name = "talker"
    parents = ("codec", "omni")
    saved = ("talker",)
    batch_on_device = True

    def __init__(self, run: RunConfig) -> None:
        """Both loss terms are means over their own targets."""
        super().__init__(run)
        self.weights = {"code": 1.0, "stop": STOP_WEIGHT}

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """The final Thinker and the codec, frozen; a new Talker."""
        cfg = run.model
        model = Parts(
            thinker=Thinker(cfg.thinker),
            codec=Codec(cfg.codec, cfg.mel),
            talker=Talker(cfg.talker, cfg.thinker.d_model, cfg.codec, cfg.mel.n_mels),
        )
        for parent, name in (("omni", "thinker"), ("codec", "codec")):
            load_parent(model, root, parent=parent, parts=(name,), child=self.name, run=run)
            freeze(model.get_submodule(name))
        self.tokenizer = load_tokenizer(root, cfg.thinker.vocab_size)
        self.data = Usable(self.quarantine, self.source, kinds=("speech",), read=self._read)
        self.need("recordings", self.data.speech)
        self._model = model
        self._utterances: dict[str, list[Utterance]] = {}
        self._orders: dict[str, Order] = {}
        self._speakers: dict[str, int] = {}
        self._of_speaker: dict[str, list[Utterance]] = {}
        codes = torch.cat([u.codes for u in self.utterances("train")], dim=1)
        counts = torch.stack([torch.bincount(level, minlength=cfg.codec.codebook_size) for level in codes])
        part(model, "talker", Talker).codes.tie(part(model, "codec", Codec).quantizer.codebooks, counts)
        part(model, "talker", Talker).voices.name(list(self.speakers()))
        return model

    def speakers(self) -> dict[str, int]:
        """Numbers of the most frequent speakers of the training recordings, from 1 on; by name where two are equal."""
        if not self._speakers:
            counts = Counter(u.speaker for u in self.utterances("train"))
            first = sorted(counts, key=lambda name: (-counts[name], name))[: self.config.talker.n_voices]
            self._speakers = {name: number for number, name in enumerate(first, start=1)}
        return self._speakers

    def _read(self, item: Item) -> torch.Tensor | None:
        """Normalised log-mel (n_frames, n_mels) of a recording that is not too long."""
        assert isinstance(item, SpeechItem)
        if item.n_samples > self.config.max_audio_samples:
            return None
        return normalise(log_mel(self.source.waveform(item), self.config.mel), self.config.mel)

    @torch.no_grad()
    def utterances(self, split: Split) -> list[Utterance]:
        """Codes and conditions of every recording of a split that there is room for, made once: both nets are frozen.

        Others are counted: too long for the context, or with more subwords than frames.
        """
        if split not in self._utterances:
            places = Places(clip_tokens=[], n_image_tokens=1, max_seq_len=self.config.max_seq_len)
            items = [i for i in self.data.speech(split) if i.n_samples <= self.config.max_audio_samples]
            said = [Example(task="say", question=SAY + item.text, answer=item.text) for item in items]
            chosen = fitting(said, self.tokenizer, **places)
            found = documents(chosen, self.tokenizer, **places)
            fit = set(chosen)
            fitted = [item for item, e in zip(items, said, strict=True) if e in fit]
            made = [
                Utterance(
                    log_mel=mel,
                    codes=self.encode([mel])[0],
                    states=states,
                    embeds=embeds,
                    speaker=item.speaker,
                )
                for item, (states, embeds) in zip(fitted, self._conditions(found), strict=True)
                if (mel := self.data.value(item)) is not None
            ]
            usable = [u for u in made if len(u.states) <= u.codes.shape[1]]
            self.quarantine.dropped[split] = len(self.data.speech(split)) - len(usable)
            self._utterances[split] = usable
            numbers = self.speakers()
            self._utterances[split] = [replace(u, voice=numbers.get(u.speaker, 0)) for u in usable]
        return self._utterances[split]

    @torch.no_grad()
    def encode(self, mels: list[torch.Tensor]) -> list[torch.Tensor]:
        """Codes (K, T) of normalised log-mels (n_frames, n_mels); the codec is causal, so padding is harmless."""
        stacked = [stack_frames(mel, self.config.mel, factor=self.config.codec.factor) for mel in mels]
        padded = nn.utils.rnn.pad_sequence(stacked, batch_first=True).to(self.device(self._model))
        codes = part(self._model, "codec", Codec).encode(padded).cpu()
        return [own[:, : len(frames)] for own, frames in zip(codes, stacked, strict=True)]

    def varied(self, made: list[Utterance], draw: torch.Generator) -> list[Utterance]:
        """The same recordings a little later and louder or softer: other codes of the same speech.

        A start shifted by less than a code frame puts every frame's borders elsewhere, so that the few
        recordings there are cannot be learnt by heart.
        """
        shifts = torch.randint(self.config.codec.factor, (len(made),), generator=draw).tolist()
        gains = (GAIN * torch.randn(len(made), generator=draw)).tolist()
        mels = [
            torch.cat([u.log_mel[:1].expand(shift, -1), u.log_mel]) + gain
            for u, shift, gain in zip(made, shifts, gains, strict=True)
        ]
        return [replace(u, codes=codes) for u, codes in zip(made, self.encode(mels), strict=True)]

    def voiced(self, made: list[Utterance], draw: torch.Generator) -> list[Utterance]:
        """Half of them told by their speaker's number, a quarter by another recording of the speaker, a quarter not."""
        result: list[Utterance] = []
        for utterance, luck in zip(made, torch.rand(len(made), generator=draw).tolist(), strict=True):
            if luck < 0.25:
                utterance = replace(utterance, voice=0)
            elif luck < 0.5:
                others = self._by_speaker()[utterance.speaker]
                other = others[int(torch.randint(len(others), (), generator=draw))]
                utterance = replace(utterance, voice=-1, heard=summary(other.log_mel))
            result.append(utterance)
        return result

    def _by_speaker(self) -> dict[str, list[Utterance]]:
        if not self._of_speaker:
            for utterance in self.utterances("train"):
                self._of_speaker.setdefault(utterance.speaker, []).append(utterance)
        return self._of_speaker

    def noisy(self, made: list[Utterance], position: int, draw: torch.Generator) -> list[Utterance]:
        """Some frames of what the Talker is told came before are random: in speaking it is told its own mistakes.

        Their share grows with the steps: at first it has to learn what follows from true codes.
        """
        done = position / (self.run.train.steps * self.run.train.micro_batches)
        share, size = self.config.talker.noise * min(1.0, done), self.config.codec.codebook_size
        result: list[Utterance] = []
        for utterance in made:
            other = torch.randint(size, utterance.codes.shape, generator=draw)
            hit = torch.rand(utterance.codes.shape[1], generator=draw) < share
            result.append(replace(utterance, noise=torch.where(hit, other, utterance.codes)))
        return result

    def _conditions(self, found: list[Document]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Thinker states and token embeddings over the answer of each document, EOS left out."""
        thinker, device = part(self._model, "thinker", Thinker), self.device(self._model)
        longest = self.config.max_seq_len
        result: list[tuple[torch.Tensor, torch.Tensor]] = [(torch.empty(0), torch.empty(0))] * len(found)
        for row in Order([len(d) for d in found], capacity=4 * longest, n_items=64, shuffle=False).epoch(0):
            chosen = [found[i] for i in row]
            batch = pack(chosen, n_tokens=4 * longest, n_docs=64, max_seq_len=longest).to(device)
            embeds = thinker.embed(batch.input_ids)
            states = thinker(embeds, batch.positions, batch.cu_seqlens, batch.max_seqlen)
            for i, document, offset in zip(row, chosen, batch.cu_seqlens.tolist(), strict=False):
                start, end = document.answers[0]
                place = slice(offset + start, offset + end)
                result[i] = (states[place].cpu(), embeds[place].cpu())
        return result

    def order(self, split: Split) -> Order:
        """Utterances packed by frames."""
        if split not in self._orders:
            # A later start may take one frame more.
            lengths = [u.codes.shape[1] + 1 + self.config.talker.delay for u in self.utterances(split)]
            self._orders[split] = Order(
                lengths, capacity=max(self.run.train.batch_tokens, max(lengths)),
                n_items=self.run.train.batch_items, seed=self.run.seed, shuffle=split == "train",
            )  # fmt: skip
        return self._orders[split]

    def batch(self, position: int, parts: int = 1) -> list[SpokenBatch]:
        """Utterances, each a little later and louder or softer."""
        made, order = self.utterances("train"), self.order("train")
        row = order.at(position)
        chosen = [made[i] for i in row]
        if self.run.train.augment:
            draw = generator(self.run.seed, 3, position)
            chosen = self.noisy(self.voiced(self.varied(chosen, draw), draw), position, draw)
        own = dict(zip(row, chosen, strict=True))
        (n_steps,), n_items = order.room(parts)
        longest = self.config.max_audio_tokens + 1 + self.config.talker.delay
        return [
            collate(
                [own[i] for i in piece],
                delay=self.config.talker.delay,
                n_steps=n_steps,
                n_items=n_items,
                longest=longest,
            )
            for piece in order.pieces(row, parts)
        ]

    def held_out(self, split: Split) -> Iterator[SpokenBatch]:
        """Every utterance once, as it is."""
        made, order = self.utterances(split), self.order(split)
        for row in order.epoch(0):
            yield collate(
                [made[i] for i in row], delay=self.config.talker.delay, n_steps=int(order.capacity[0]),
                n_items=order.n_items,
                longest=self.config.max_audio_tokens + 1 + self.config.talker.delay,
            )  # fmt: skip

    def counts(self, batch: SpokenBatch) -> dict[str, torch.Tensor | int]:
        """Codes and frames."""
        return {"code": n_targets(batch.labels), "stop": batch.n_frames}

    def forward(self, model: nn.Module, batch: SpokenBatch) -> dict[str, torch.Tensor]:
        """Queries of codes (N, K, latent_dim) and logits of stopping (N,): `Talker.forward`, packed."""
        talker = part(model, "talker", Talker)
        text = talker.from_state(batch.states) + talker.from_embed(batch.embeds)
        voice = talker.voices(batch.voice, batch.heard)
        condition = (
            torch.where(batch.is_text[:, None], text, talker.pad.to(text.dtype)) + voice[batch.utterance]
        )
        return talker.packed(
            batch.codes, batch.told, condition, batch.positions, batch.cu_seqlens, batch.max_seqlen
        )

    def losses(self, model: nn.Module, batch: SpokenBatch, phase: str) -> dict[str, torch.Tensor]:
        """Summed cross entropy of the codes; summed binary cross entropy of stopping."""
        out = self.forward(model, batch)
        valid = (batch.labels[:, 0] != IGNORE_INDEX).float()
        stop = F.binary_cross_entropy_with_logits(
            out["stop"].float(), batch.is_last.float(), weight=valid, reduction="sum"
        )
        code, _ = part(model, "talker", Talker).codes.cross_entropy(out["queries"], batch.labels)
        return {"code": code.sum(), "stop": stop}

    def fill(self, batch: SpokenBatch) -> tuple[int, int]:
        """Steps that are not padding, and all."""
        return batch.n_steps, len(batch.codes)

    def evaluate(self, model: nn.Module, split: Split) -> list[Figure]:
        """Code loss against unigrams and against another item's text; see talker_figures."""
        return figures(self, model, split)

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """A held-out text, spoken; see spoken_samples."""
        return talker_samples(self, model, split, folder)


def collate(
    made: list[Utterance],
    *,
    delay: int,
    n_steps: int | None = None,
    n_items: int | None = None,
    longest: int = 0,
) -> SpokenBatch:
    """Lay utterances one after another into n_steps steps, by default as many as they take.

    delay: steps that each takes beyond its frames (TalkerConfig.delay). Text positions behind an utterance's last frame
    are cut. Raises ValueError when they do not fit.
    """
    lengths = [u.codes.shape[1] + delay for u in made]
    used, longest = sum(lengths), max(longest, *lengths)
    total = used if n_steps is None else n_steps
    cu_seqlens = cumulative(lengths, n_max=n_items or len(made), total=total, longest=longest)
    n_levels, width = made[0].codes.shape[0], made[0].states.shape[1]
    codes, told = (torch.zeros(total, n_levels, dtype=torch.int64) for _ in range(2))
    states, embeds = torch.zeros(total, width), torch.zeros(total, width)
    is_frame, is_text, is_last = (torch.zeros(total, dtype=torch.bool) for _ in range(3))
    n_rooms, n_heard = n_items or len(made), 2 * made[0].log_mel.shape[1]
    voice, heard = torch.zeros(n_rooms, dtype=torch.int64), torch.zeros(n_rooms, n_heard)
    start = 0
    for i, (utterance, length) in enumerate(zip(made, lengths, strict=True)):
        end = start + length - delay
        codes[start:end] = utterance.codes.T
        told[start:end] = (utterance.noise if utterance.noise.numel() else utterance.codes).T
        n_text = min(len(utterance.states), end - start)
        states[start : start + n_text] = utterance.states[:n_text]
        embeds[start : start + n_text] = utterance.embeds[:n_text]
        is_text[start : start + n_text] = True
        is_frame[start:end] = is_last[end - 1] = True
        voice[i] = utterance.voice
        if utterance.heard.numel():
            heard[i] = utterance.heard
        start += length
    sizes = cu_seqlens.diff()
    positions = torch.arange(total) - cu_seqlens[:-1].long().repeat_interleave(sizes)
    segments = torch.arange(len(sizes)).clamp(max=n_rooms - 1)
    return SpokenBatch(
        codes=codes, labels=codes.masked_fill(~is_frame[:, None], IGNORE_INDEX), told=told, voice=voice, heard=heard,
        utterance=segments.repeat_interleave(sizes), states=states, embeds=embeds, is_text=is_text, is_last=is_last,
        positions=positions, cu_seqlens=cu_seqlens, max_seqlen=longest, n_frames=used - delay * len(made), n_steps=used,
    )  # fmt: skip
