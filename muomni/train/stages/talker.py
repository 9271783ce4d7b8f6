"""Stage talker: from the Thinker's states over an answer to the codes of its recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data.audio import CTC_SYMBOLS, ctc_symbols, log_mel, normalise, stack_frames
from muomni.data.batch import Order, pack
from muomni.data.examples import Example, Places, documents, fitting
from muomni.data.items import Item, SpeechItem, Split
from muomni.data.template import Document
from muomni.data.usable import Usable
from muomni.data.wordings import SAY
from muomni.models.alignment import begins, walk
from muomni.models.audio import AudioEncoder, CTCHead
from muomni.models.codec import Codec
from muomni.models.script import Text
from muomni.models.talker import Talker, summary
from muomni.models.thinker import Thinker
from muomni.train.losses import n_targets
from muomni.train.stage import Figure, Parts, StageBase, freeze, generator, load_parent, part
from muomni.train.stages.spoken_samples import talker_samples
from muomni.train.stages.talker_figures import figures
from muomni.train.stages.text import load_tokenizer
from muomni.train.stages.utterances import SpokenBatch, Utterance, collate, spread

ADVANCE_WEIGHT = 0.2
"""Weight of the loss of the pace, a mean over frames as the code loss is one over codes."""
NONE = torch.zeros(0, dtype=torch.int64)
ENCODED_AT_ONCE = 16
"""Recordings of about one length that the codec encodes together."""


class TalkerStage(StageBase):
    """Codes of every frame, teacher-forced, and the pace at which it goes through the text.

    When each character of a recording is said, the CTC head knows.
    """

    name = "talker"
    parents = ("audio", "codec", "omni")
    saved = ("talker",)

    def __init__(self, run: RunConfig) -> None:
        """Each loss term is a mean over its own targets."""
        super().__init__(run)
        first = 1.0 / run.model.codec.n_codebooks
        self.weights = {"first": first, "depth": 1.0 - first, "advance": ADVANCE_WEIGHT}

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """The final Thinker, the codec and what CTC spells with, frozen; a new Talker."""
        cfg = run.model
        model = Parts(
            thinker=Thinker(cfg.thinker),
            codec=Codec(cfg.codec, cfg.mel),
            audio=AudioEncoder(cfg.audio, cfg.mel.n_mels),
            ctc_head=CTCHead(cfg.audio.d_model, cfg.audio.ctc_expand, len(CTC_SYMBOLS)),
            talker=Talker(cfg.talker, cfg.thinker.d_model, cfg.codec, cfg.mel.n_mels),
        )
        for parent, *names in (("omni", "thinker"), ("codec", "codec"), ("audio", "audio", "ctc_head")):
            load_parent(model, root, parent=parent, parts=names, child=self.name, run=run)
            for name in names:
                freeze(model.get_submodule(name))
        self.tokenizer = load_tokenizer(root, cfg.thinker.vocab_size)
        self.data = Usable(self.quarantine, self.source, kinds=("speech",), read=self._read)
        self.need("recordings", self.data.speech)
        self._model = model
        self._utterances: dict[str, list[Utterance]] = {}
        self._orders: dict[str, Order] = {}
        self._speakers: dict[str, int] = {}
        self._of_speaker: dict[str, list[Utterance]] = {}
        # Once, not at every step: the codec would take more of it than the Talker.
        self._later = self._half_a_frame_later(self.utterances("train")) if run.train.augment else []
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

        Others are counted: too long for the context, or with more text than CTC can spell in their time.
        """
        if split not in self._utterances:
            places = Places(clip_tokens=[], heard={}, n_image_tokens=1, max_seq_len=self.config.max_seq_len)
            items = [i for i in self.data.speech(split) if i.n_samples <= self.config.max_audio_samples]
            said = [Example(task="say", question=SAY + item.text, answer=item.text) for item in items]
            chosen = fitting(said, self.tokenizer, **places)
            found = documents(chosen, self.tokenizer, **places)
            fit = set(chosen)
            fitted = [item for item, e in zip(items, said, strict=True) if e in fit]
            read = [
                (mel, text, item.speaker)
                for item, text in zip(fitted, self._texts(found), strict=True)
                if (mel := self.data.value(item)) is not None
            ]
            made = [
                Utterance(log_mel=mel, codes=codes, text=text, begins=NONE, places=NONE, speaker=speaker)
                for (mel, text, speaker), codes in zip(
                    read, self.encode([mel for mel, *_ in read]), strict=True
                )
            ]
            usable = self._timed(made)
            self.quarantine.dropped[split] = len(self.data.speech(split)) - len(usable)
            self._utterances[split] = usable
            numbers = self.speakers()
            self._utterances[split] = [replace(u, voice=numbers.get(u.speaker, 0)) for u in usable]
        return self._utterances[split]

    @torch.no_grad()
    def encode(self, mels: list[torch.Tensor], *, shift: int = 0) -> list[torch.Tensor]:
        """Codes (K, T) of normalised log-mels (n_frames, n_mels), `shift` times their first frame before each.

        The codec is causal, so padding is harmless.
        """
        codec, device, cfg = part(self._model, "codec", Codec), self.device(self._model), self.config
        order = sorted(range(len(mels)), key=lambda i: len(mels[i]))
        result: dict[int, torch.Tensor] = {}
        for chosen in (order[at : at + ENCODED_AT_ONCE] for at in range(0, len(order), ENCODED_AT_ONCE)):
            later = [torch.cat([mels[i][:1].expand(shift, -1), mels[i]]) for i in chosen]
            stacked = [stack_frames(mel, cfg.mel, factor=cfg.codec.factor) for mel in later]
            padded = nn.utils.rnn.pad_sequence(stacked, batch_first=True).to(device)
            for i, codes, frames in zip(chosen, codec.encode(padded).cpu(), stacked, strict=True):
                result[i] = codes[:, : len(frames)].contiguous()
        return [result[i] for i in range(len(mels))]

    def varied(self, row: list[int], draw: torch.Generator) -> list[Utterance]:
        """Training recordings, half of them half a code frame later: other codes of the same speech.

        Every frame's borders lie elsewhere then, so that the few recordings there are cannot be learnt by heart.
        Speaking starts as recordings do, so half are left as they are.
        """
        later = (torch.rand(len(row), generator=draw) < 0.5).tolist()
        return [
            (self._later if late else self.utterances("train"))[i] for i, late in zip(row, later, strict=True)
        ]

    def _half_a_frame_later(self, made: list[Utterance]) -> list[Utterance]:
        """Recordings whose first log-mel frame is repeated for half a code frame."""
        factor = self.config.codec.factor
        shift = factor // 2
        codes = self.encode([u.log_mel for u in made], shift=shift)
        return [
            replace(u, codes=own, places=walk(u.begins, own.shape[1], factor=factor, shift=shift))
            for u, own in zip(made, codes, strict=True)
        ]

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

    def _timed(self, made: list[Utterance]) -> list[Utterance]:
        """With the time of every character; without those whose text CTC cannot spell in their time."""
        audio, head = part(self._model, "audio", AudioEncoder), part(self._model, "ctc_head", CTCHead)
        clips = [stack_frames(u.log_mel, self.config.mel, factor=audio.cfg.factor) for u in made]
        spelled = [torch.tensor(ctc_symbols(bytes((u.text.characters - 1).tolist()).decode())) for u in made]
        times = begins(audio, head, clips, spelled)
        return [
            replace(u, begins=own, places=walk(own, u.codes.shape[1], factor=self.config.codec.factor))
            for u, own in zip(made, times, strict=True)
            if own is not None
        ]

    def _texts(self, found: list[Document]) -> list[Text]:
        """The answer of each document, its EOS left out."""
        thinker, device = part(self._model, "thinker", Thinker), self.device(self._model)
        longest = self.config.max_seq_len
        result: dict[int, Text] = {}
        for row in Order([len(d) for d in found], capacity=4 * longest, n_items=64, shuffle=False).epoch(0):
            chosen = [found[i] for i in row]
            batch = pack(chosen, n_tokens=4 * longest, n_docs=64, max_seq_len=longest).to(device)
            embeds = thinker.embed(batch.input_ids)
            states = thinker(embeds, batch.positions, batch.cu_seqlens, batch.max_seqlen)
            for i, document, offset in zip(row, chosen, batch.cu_seqlens.tolist(), strict=False):
                start, end = document.answers[0]
                spelled = [self.tokenizer.spell(token) for token in document.input_ids[start:end].tolist()]
                place = slice(offset + start, offset + end)
                result[i] = Text.of(states[place].cpu(), embeds[place].cpu(), spelled)
        return [result[i] for i in range(len(found))]

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
        """Utterances, some half a frame later."""
        made, order = self.utterances("train"), self.order("train")
        row = order.at(position)
        chosen = [made[i] for i in row]
        if self.run.train.augment:
            draw = generator(self.run.seed, 3, position)
            chosen = self.noisy(self.voiced(self.varied(row, draw), draw), position, draw)
        luck = float(torch.rand((), generator=generator(self.run.seed, 4, position)))
        chosen = spread(chosen, share := self.config.talker.depth_share, luck)
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
                depth_share=share,
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
        """Codes of codebook 0, codes of the others, and frames."""
        return {"first": batch.n_frames, "depth": n_targets(batch.deep_labels), "advance": batch.n_frames}

    def forward(self, model: nn.Module, batch: SpokenBatch) -> dict[str, torch.Tensor]:
        """Queries of codes and hidden states: `Talker.packed`."""
        talker = part(model, "talker", Talker)
        text = talker.script(batch.states, batch.embeds, batch.around, batch.waited)
        condition = text + talker.voices(batch.voice, batch.heard)[batch.utterance]
        return talker.packed(
            batch.codes,
            batch.told,
            condition,
            batch.positions,
            batch.cu_seqlens,
            batch.max_seqlen,
            deep=batch.deep,
        )

    def losses(self, model: nn.Module, batch: SpokenBatch, phase: str) -> dict[str, torch.Tensor]:
        """Summed cross entropy of codebook 0 and of the others; that of advancing."""
        out, talker = self.forward(model, batch), part(model, "talker", Talker)
        first, _ = talker.codes.cross_entropy(out["first"], batch.labels)
        depth, _ = talker.codes.cross_entropy(out["depth"], batch.deep_labels, start=1)
        advance = talker.advance_cross_entropy(out["hidden"], batch.advance)
        return {"first": first.sum(), "depth": depth.sum(), "advance": advance}

    def fill(self, batch: SpokenBatch) -> tuple[int, int]:
        """Steps that are not padding, and all."""
        return batch.n_steps, len(batch.codes)

    def evaluate(self, model: nn.Module, split: Split) -> list[Figure]:
        """Code loss against unigrams and against another item's text; see talker_figures."""
        return figures(self, model, split)

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """A held-out text, spoken; see spoken_samples."""
        return talker_samples(self, model, split, folder)
