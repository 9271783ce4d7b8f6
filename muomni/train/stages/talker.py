"""Stage talker: from the Thinker's states over an answer to the codes of its recording."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import RunConfig
from muomni.data import embedded
from muomni.data.audio import log_mel, normalise, stack_frames
from muomni.data.batch import Order, pack
from muomni.data.tasks import SAY, Example, documents
from muomni.data.template import Document
from muomni.models.codec import Codec
from muomni.models.talker import Talker
from muomni.models.thinker import Thinker
from muomni.tokens import IGNORE_INDEX
from muomni.train.losses import n_targets
from muomni.train.stage import Figure, Parts, StageBase, freeze, generator, load_parent, part
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


@dataclass(frozen=True, kw_only=True)
class SpokenBatch:
    """Utterances, padded."""

    codes: torch.Tensor
    """(B, K, T) int64, 0 behind an utterance's end."""
    states: torch.Tensor
    """(B, n, d_thinker)."""
    embeds: torch.Tensor
    """(B, n, d_thinker)."""
    n_text: torch.Tensor
    """(B,) int64."""
    lengths: torch.Tensor
    """(B,) int64 frames."""
    labels: torch.Tensor
    """(B, T, K) int64: the codes, IGNORE_INDEX behind the end."""

    def to(self, device: torch.device) -> SpokenBatch:
        """The same batch on a device."""
        return SpokenBatch(**{name: value.to(device) for name, value in vars(self).items()})


class TalkerStage(StageBase):
    """Codes of every frame, teacher-forced, and when to stop."""

    name = "talker"
    parents = ("codec", "omni")
    saved = ("talker",)

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
            talker=Talker(cfg.talker, cfg.thinker.d_model, cfg.codec),
        )
        for parent, name in (("omni", "thinker"), ("codec", "codec")):
            load_parent(model, root, parent=parent, parts=(name,), child=self.name, run=run)
            freeze(model.get_submodule(name))
        self.tokenizer = load_tokenizer(root, cfg.thinker.vocab_size)
        self.dropped: dict[str, int] = {}
        """Recordings left out of each split: too long for the context, or with more subwords than frames."""
        self._model = model
        self._utterances: dict[str, list[Utterance]] = {}
        codes = torch.cat([u.codes for u in self.utterances("train")], dim=1)
        counts = torch.stack([torch.bincount(level, minlength=cfg.codec.codebook_size) for level in codes])
        part(model, "talker", Talker).codes.tie(part(model, "codec", Codec).quantizer.codebooks, counts)
        return model

    @torch.no_grad()
    def utterances(self, split: embedded.Split) -> list[Utterance]:
        """Codes and conditions of every usable recording of a split; both nets are frozen, so once is enough."""
        if split not in self._utterances:
            items = [i for i in embedded.speech(split) if i.n_samples <= self.config.max_audio_samples]
            chosen = [Example(task="say", question=SAY + item.text, answer=item.text) for item in items]
            found = documents(
                chosen, self.tokenizer, clip_tokens=[], n_image_tokens=self.config.vision.n_image_tokens,
                max_seq_len=self.config.max_seq_len,
            )  # fmt: skip
            mels = [normalise(log_mel(embedded.waveform(i), self.config.mel), self.config.mel) for i in items]
            made = [
                Utterance(log_mel=mel, codes=self.encode([mel])[0], states=states, embeds=embeds)
                for mel, (states, embeds) in zip(mels, self._conditions(found), strict=True)
            ]
            usable = [u for u in made if len(u.states) <= u.codes.shape[1]]
            self.dropped[split] = len(embedded.speech(split)) - len(usable)
            self._utterances[split] = usable
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
        return [dataclasses.replace(u, codes=codes) for u, codes in zip(made, self.encode(mels), strict=True)]

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

    def batches(self, split: embedded.Split, state: int) -> Iterator[SpokenBatch]:
        """Utterances of similar length together: the padded size stays within batch_tokens frames."""
        made, training = self.utterances(split), split == "train"
        # A later start may take one frame more.
        lengths = [u.codes.shape[1] + 1 for u in made]
        order = Order(
            lengths, capacity=max(self.run.train.batch_tokens, max(lengths)), n_items=self.run.train.batch_items,
            seed=self.run.seed, shuffle=training, padded=True,
        )  # fmt: skip
        rows = order.iterate(state) if training else iter(order.epoch(0))
        for position, row in enumerate(rows, start=state):
            chosen = [made[i] for i in row]
            if training and self.run.train.augment:
                chosen = self.varied(chosen, generator(self.run.seed, 3, position))
            yield collate(chosen)

    def counts(self, batch: SpokenBatch) -> dict[str, torch.Tensor | int]:
        """Codes and frames."""
        return {"code": n_targets(batch.labels), "stop": batch.lengths.sum()}

    def forward(self, model: nn.Module, batch: SpokenBatch) -> dict[str, torch.Tensor]:
        """Queries of codes and logits of stopping for a batch on the model's device."""
        talker = part(model, "talker", Talker)
        condition = talker.condition(batch.states, batch.embeds, batch.n_text, batch.codes.shape[2])
        return talker(batch.codes, condition, batch.lengths)

    def losses(self, model: nn.Module, batch: SpokenBatch, phase: str) -> dict[str, torch.Tensor]:
        """Summed cross entropy of the codes; summed binary cross entropy of stopping."""
        batch = batch.to(self.device(model))
        out = self.forward(model, batch)
        frames = torch.arange(batch.codes.shape[2], device=batch.codes.device)
        last = (frames == batch.lengths[:, None] - 1).float()
        valid = (frames < batch.lengths[:, None]).float()
        stop = F.binary_cross_entropy_with_logits(out["stop"].float(), last, weight=valid, reduction="sum")
        code, _ = part(model, "talker", Talker).codes.cross_entropy(out["queries"], batch.labels)
        return {"code": code.sum(), "stop": stop}

    def fill(self, batch: SpokenBatch) -> tuple[int, int]:
        """Code frames that are not padding, and all."""
        return int(batch.lengths.sum()), batch.codes.shape[0] * batch.codes.shape[2]

    def evaluate(self, model: nn.Module, split: embedded.Split) -> list[Figure]:
        """Code loss against unigrams and against another item's text; see talker_figures."""
        return figures(self, model, split)


def collate(made: list[Utterance]) -> SpokenBatch:
    """Pad utterances to the longest of them."""
    pad = nn.utils.rnn.pad_sequence
    return SpokenBatch(
        codes=pad([u.codes.T for u in made], batch_first=True).transpose(1, 2).contiguous(),
        states=pad([u.states for u in made], batch_first=True),
        embeds=pad([u.embeds for u in made], batch_first=True),
        n_text=torch.tensor([len(u.states) for u in made]),
        lengths=torch.tensor([u.codes.shape[1] for u in made]),
        labels=pad([u.codes.T for u in made], batch_first=True, padding_value=IGNORE_INDEX),
    )
