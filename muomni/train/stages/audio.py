"""Stage audio: the audio encoder and its CTC head learn to spell recorded speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data.audio import (
    CTC_SYMBOLS,
    ctc_feasible,
    decode_ctc,
    encode_ctc,
    log_mel,
    normalise,
    stack_frames,
)
from muomni.data.batch import HOST, Batch, Order, cumulative
from muomni.data.items import Item, SpeechItem, Split
from muomni.data.usable import BEFORE_TRAINING, Usable
from muomni.errors import UserError
from muomni.metrics.edit import best_constant_error_rate, error_rate
from muomni.models.audio import AudioEncoder, CTCHead
from muomni.train.stage import Figure, Parts, StageBase, generator, part
from muomni.train.stages.ctc import packed_ctc_loss
from muomni.train.stages.written_samples import audio_samples

SPEEDS = (0.9, 1.0, 1.1)
"""Tempo and pitch factors of the training copies."""
MASKED_BANDS, MASKED_FRAMES = 16, 16
"""Widest frequency mask in mel bands and time mask in log-mel frames (100 Hz)."""
MOST_COPIES = 4
"""Times a speaker's recordings are taken in an epoch of stage audio, at most."""
SPELLED = "en"
"""The language of the characters CTC spells with."""
BAND_SHIFT = 3
"""Largest shift along the mel axis, bands."""


@dataclass(frozen=True, kw_only=True)
class SpeechBatch(Batch):
    """Clips one after another, with their transcripts."""

    frames: torch.Tensor
    """(N, factor * n_mels) float32, zeros after the last clip."""
    cu_seqlens: torch.Tensor
    """int32; segment i < n is clip i, the rest is padding."""
    targets: torch.Tensor
    """(N * ctc_expand,) int64, transcripts one after another: a feasible one has at most a character a position."""
    input_lengths: torch.Tensor = field(metadata=HOST)
    """(batch_items,) int64 audio frames of each clip, 0 after the last, on the CPU."""
    target_lengths: torch.Tensor = field(metadata=HOST)
    """(batch_items,) int64 characters of each transcript, 0 after the last, on the CPU."""
    texts: tuple[str, ...] = field(metadata=HOST)
    """The transcripts."""


class AudioStage(StageBase):
    """CTC over characters at ctc_expand positions an audio frame."""

    name = "audio"
    saved = ("audio", "ctc_head")
    # CTC reads the lengths of its clips on the host.
    capturable = False
    slow_batches = True
    weights: Mapping[str, float] = {"ctc": 1.0}

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """Read every clip; start the encoder from the seed."""
        self.data = Usable(self.quarantine, self.source, kinds=("speech",), read=self._read)
        self._usable: dict[str, list[SpeechItem]] = {}
        self._orders: dict[str, tuple[list[tuple[SpeechItem, int]], Order]] = {}
        for split in BEFORE_TRAINING:
            self.items(split)
        cfg = run.model.audio
        return Parts(
            audio=AudioEncoder(cfg, run.model.mel.n_mels),
            ctc_head=CTCHead(cfg.d_model, cfg.ctc_expand, len(CTC_SYMBOLS)),
        )

    def items(self, split: Split) -> list[SpeechItem]:
        """Clips that fit the context and whose transcript fits the fastest copy; the others are counted."""
        if split not in self._usable:
            items = [item for item in self.data.speech(split) if item.language == SPELLED]
            fastest = max(SPEEDS) if split == "train" else 1.0
            self._usable[split] = [item for item in items if self._fits(item, fastest)]
            self.quarantine.dropped[split] = len(items) - len(self._usable[split])
            if not self._usable[split]:
                raise UserError(
                    f"audio: no clip of split {split} fits; raise audio.ctc_expand or max_seq_len."
                )
        return self._usable[split]

    def _fits(self, item: SpeechItem, speed: float) -> bool:
        n_frames = int(item.n_samples / speed) // self.config.samples_per_frame
        slowest = item.n_samples / (min(SPEEDS) if speed > 1.0 else 1.0)
        return slowest <= self.config.max_audio_samples and ctc_feasible(
            item.text, n_frames * self.config.audio.ctc_expand
        )

    def _read(self, item: Item) -> torch.Tensor:
        """A clip whose transcript can be spelled, (n_samples,) float32. Raises MediaError."""
        assert isinstance(item, SpeechItem)
        if item.language == SPELLED:
            encode_ctc(item.text)
        return torch.from_numpy(self.source.waveform(item))

    def mel(self, item: SpeechItem, speed: int) -> torch.Tensor | None:
        """Normalised log-mel (n_frames, n_mels) of a clip at SPEEDS[speed]; None for a bad one."""

        def make(samples: torch.Tensor) -> torch.Tensor:
            waveform = samples.numpy()
            if SPEEDS[speed] != 1.0:
                waveform = soxr.resample(waveform, 16_000 * SPEEDS[speed], 16_000).astype(np.float32)
            return normalise(log_mel(waveform, self.config.mel), self.config.mel)

        return self.data.derived(item, speed, make)

    def order(self, split: Split) -> tuple[list[tuple[SpeechItem, int]], Order]:
        """Clips packed by frames, each with an index of SPEEDS.

        In training an epoch has each at every speed, as often as `speaker_copies` says.
        """
        if split not in self._orders:
            items, train = self.items(split), self.run.train
            varied = split == "train" and train.augment
            speeds = range(len(SPEEDS)) if varied else [SPEEDS.index(1.0)]
            times = speaker_copies(items) if varied else {}
            copies = [
                (item, speed) for item in items for speed in speeds for _ in range(times.get(item.speaker, 1))
            ]
            # Resampling may round up by one sample.
            lengths = [
                self.config.audio_tokens(int(item.n_samples / SPEEDS[speed]) + 1) for item, speed in copies
            ]
            order = Order(
                lengths, capacity=max(train.batch_tokens, max(lengths)), n_items=train.batch_items,
                seed=self.run.seed, shuffle=split == "train",
            )  # fmt: skip
            self._orders[split] = (copies, order)
        return self._orders[split]

    def batch(self, position: int, parts: int = 1) -> list[SpeechBatch]:
        """Clips at their speeds, shifted and masked."""
        copies, order = self.order("train")
        row = order.at(position)
        mels = {i: mel for i in row if (mel := self.mel(*copies[i])) is not None}
        if self.run.train.augment:
            draw = generator(self.run.seed, 3, position)
            mels = {i: self.augment(mel, draw) for i, mel in mels.items()}
        (capacity,), n_items = order.room(parts)
        return [
            self.collate(
                [mels[i] for i in piece if i in mels], [copies[i][0].text for i in piece if i in mels],
                capacity=capacity, n_items=n_items,
            )
            for piece in order.pieces(row, parts)
        ]  # fmt: skip

    def held_out(self, split: Split) -> Iterator[SpeechBatch]:
        """Every clip once, as it is."""
        copies, order = self.order(split)
        for row in order.epoch(0):
            made = [(mel, copies[i][0].text) for i in row if (mel := self.mel(*copies[i])) is not None]
            mels, texts = [mel for mel, _ in made], [text for _, text in made]
            yield self.collate(mels, texts, capacity=int(order.capacity[0]))

    def augment(self, mel: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Shift along both axes, then mask two bands and some stretches of time with the clip's mean."""

        def number(high: int) -> int:
            return int(torch.randint(high, (), generator=draw))

        n_frames, n_mels = mel.shape
        shift = number(2 * BAND_SHIFT + 1) - BAND_SHIFT
        mel = torch.roll(mel, shift, dims=1)[number(self.config.audio.factor // 2) :].clone()
        if shift > 0:
            mel[:, :shift] = mel[:, shift : shift + 1]
        elif shift < 0:
            mel[:, shift:] = mel[:, shift - 1 : shift]
        mel += torch.randn((), generator=draw) * 0.15
        # Of means: one over so many values has other bits with other threads, and a worker has one.
        mean = mel.mean(1).mean()
        for _ in range(2):
            width = number(MASKED_BANDS + 1)
            start = number(n_mels - width + 1)
            mel[:, start : start + width] = mean
        for _ in range(1 + n_frames // 200):
            width = number(min(MASKED_FRAMES, len(mel) // 5) + 1)
            start = number(len(mel) - width + 1)
            mel[start : start + width] = mean
        return mel

    def collate(
        self, mels: list[torch.Tensor], texts: list[str], *, capacity: int, n_items: int | None = None
    ) -> SpeechBatch:
        """Stack, pack and pad to `capacity` frames and n_items clips, by default batch_items."""
        mel, factor = self.config.mel, self.config.audio.factor
        clips = [stack_frames(m, mel, factor=factor) for m in mels]
        lengths = [len(clip) for clip in clips]
        frames = torch.zeros(capacity, factor * mel.n_mels)
        if clips:
            frames[: sum(lengths)] = torch.cat(clips)
        spelled = [encode_ctc(text) for text in texts]
        characters = torch.tensor([c for own in spelled for c in own], dtype=torch.int64)
        targets = torch.zeros(capacity * self.config.audio.ctc_expand, dtype=torch.int64)
        targets[: len(characters)] = characters
        n_items = n_items or self.run.train.batch_items
        return SpeechBatch(
            frames=frames,
            cu_seqlens=cumulative(
                lengths, n_max=n_items, total=capacity, longest=self.config.max_audio_tokens
            ),
            targets=targets,
            input_lengths=_padded(lengths, n_items),
            target_lengths=_padded([len(own) for own in spelled], n_items),
            texts=tuple(texts),
        )

    def counts(self, batch: SpeechBatch) -> dict[str, torch.Tensor | int]:
        """Characters to spell."""
        return {"ctc": int(batch.target_lengths.sum())}

    def logits(self, model: nn.Module, batch: SpeechBatch) -> torch.Tensor:
        """(N * ctc_expand, n_symbols), clips one after another."""
        hidden = part(model, "audio", AudioEncoder)(
            batch.frames, batch.cu_seqlens, self.config.max_audio_tokens
        )
        return part(model, "ctc_head", CTCHead)(hidden)

    def losses(self, model: nn.Module, batch: SpeechBatch, phase: str) -> dict[str, torch.Tensor]:
        """Summed CTC loss."""
        loss = packed_ctc_loss(
            self.logits(model, batch),
            batch.targets,
            input_lengths=batch.input_lengths * self.config.audio.ctc_expand,
            target_lengths=batch.target_lengths,
        )
        return {"ctc": loss}

    def fill(self, batch: SpeechBatch) -> tuple[int, int]:
        """Audio frames that are not padding, and all."""
        return int(batch.input_lengths.sum()), len(batch.frames)

    def evaluate(self, model: nn.Module, split: Split) -> list[Figure]:
        """Greedy character error rate, against the best constant output on the same clips."""
        said: list[str] = []
        references: list[str] = []
        for batch in self.held_out(split):
            best = self.logits(model, batch.to(self.device(model))).argmax(-1).cpu()
            lengths = (batch.input_lengths * self.config.audio.ctc_expand).tolist()
            clips = best[: sum(lengths)].split(lengths)[: len(batch.texts)]
            said += [decode_ctc(clip.tolist()) for clip in clips]
            references += batch.texts
        return [
            Figure(
                name="speech character error rate", value=error_rate(references, said).value,
                baseline=best_constant_error_rate(references).value, baseline_name="best constant output",
                n=len(references),
            )
        ]  # fmt: skip

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """Transcripts against what is said; see written_samples."""
        return audio_samples(self, model, split, folder)


def speaker_copies(items: Sequence[SpeechItem]) -> dict[str, int]:
    """How often each speaker's recordings are taken: the square root of how much more the most heard one has.

    Minutes of a person beside hours of synthetic voices are else heard too seldom.
    """
    samples = Counter[str]()
    for item in items:
        samples[item.speaker] += item.n_samples
    most = max(samples.values(), default=0)
    return {who: min(MOST_COPIES, round((most / n) ** 0.5)) for who, n in samples.items()}


def _padded(lengths: list[int], size: int) -> torch.Tensor:
    """int64 (size,), zeros behind the lengths."""
    return torch.tensor(lengths + [0] * (size - len(lengths)), dtype=torch.int64)
