"""Stage vocoder: log-mel, of recordings and of the codec's copies of them, to waveforms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import RunConfig
from muomni.data.audio import log_mel, normalise, stack_frames
from muomni.data.batch import Batch
from muomni.data.items import Item, QuestionItem, SpeechItem, Split
from muomni.data.usable import Usable
from muomni.errors import UserError
from muomni.models.codec import Codec
from muomni.models.discriminators import Discriminators
from muomni.models.griffin_lim import GriffinLim
from muomni.models.spectral import SpectralDistance
from muomni.models.vocoder import Vocoder
from muomni.train.samples import spread
from muomni.train.stage import Figure, Parts, StageBase, freeze, generator, load_parent, part
from muomni.train.stages.adversarial import fooled, judged
from muomni.train.stages.spoken_samples import vocoder_samples

CROP = 8
"""Code frames of a training crop (0.64 s)."""
BEFORE = 3
"""Log-mel frames before a crop that its first frames' windows reach into."""
MEASURED = 24
"""Held-out recordings, spread over the split, that figures are measured on."""


@dataclass(frozen=True, kw_only=True)
class WaveBatch(Batch):
    """Crops of clips."""

    frames: torch.Tensor
    """(B, T, factor * n_mels) float32 normalised log-mel."""
    wave: torch.Tensor
    """(B, T * factor * hop_length) float32: what they are the log-mel of."""
    coded: torch.Tensor
    """(B,) bool: whether the vocoder is given the codec's copy, every second crop."""
    adversarial: bool
    """Whether the discriminators take part yet."""


class VocoderStage(StageBase):
    """Spectral distances at several resolutions; later also what discriminators say."""

    name = "vocoder"
    parents = ("codec",)
    saved = ("vocoder", "discriminators")
    # A recorded step could not take the discriminators in later; whether torch.stft records well no GPU has told yet.
    capturable = False

    def __init__(self, run: RunConfig) -> None:
        """Without discriminators there is one phase."""
        super().__init__(run)
        share = run.model.vocoder.adversarial_from
        self.phases, self.weights = ("generator",), {"mel": 1.0, "magnitude": 1.0}
        if share < 1:
            self.phases += ("discriminator",)
            self.weights |= {"fooled": 0.05, "features": 0.1, "judged": 1.0}

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """The codec, frozen; a new vocoder, with discriminators where they take part."""
        cfg = run.model
        model = Parts(
            codec=Codec(cfg.codec, cfg.mel),
            vocoder=Vocoder(cfg.mel, cfg.vocoder),
            distance=SpectralDistance(cfg.mel),
        )
        load_parent(model, root, parent="codec", parts=("codec",), child=self.name, run=run)
        freeze(model.get_submodule("codec"))
        if len(self.phases) > 1:
            model.add_module("discriminators", Discriminators(cfg.vocoder.d_discriminator))
        self.data = Usable(self.quarantine, self.source, kinds=("speech", "questions"), read=self._read)
        self.need("recordings", self.data.speech)
        return model

    def _read(self, item: Item) -> torch.Tensor:
        """A clip's samples, int16: half the memory, and no loss where 16 bits were recorded."""
        assert isinstance(item, SpeechItem | QuestionItem)
        wave = torch.from_numpy(self.source.waveform(item))
        return (wave.clamp(-1.0, 1.0) * 32_767.0).round().to(torch.int16)

    def parameters(self, model: nn.Module, phase: str) -> dict[str, nn.Parameter]:
        """The vocoder's, or the discriminators'."""
        name = "vocoder." if phase == "generator" else "discriminators."
        return {k: p for k, p in model.named_parameters() if k.startswith(name)}

    def takes(self, phase: str, batch: WaveBatch) -> bool:
        """The discriminators wait until the vocoder has learned the spectrum."""
        return phase == "generator" or batch.adversarial

    def batch(self, position: int, parts: int = 1) -> list[WaveBatch]:
        """Random crops: a clip is drawn in proportion to its length."""
        items = [*self.data.speech("train"), *self.data.questions("train")]
        weights = torch.tensor([float(self.config.audio_tokens(item.n_samples)) for item in items])
        n_crops = max(1, self.run.train.batch_tokens // CROP)
        draw = generator(self.run.seed, 3, position)
        chosen = torch.multinomial(weights, n_crops, replacement=True, generator=draw).tolist()
        crops = [self._crop(self._readable(items, i), draw) for i in chosen]
        frames, waves = (torch.stack(column) for column in zip(*crops, strict=True))
        coded = torch.arange(n_crops) % 2 == 0
        # Crops that fill no piece are left out: at most parts - 1 of them.
        size = max(1, n_crops // parts)
        return [
            WaveBatch(
                frames=frames[piece], wave=waves[piece], coded=coded[piece], adversarial=self._is_adversarial(position)
            )
            for piece in (slice(start, start + size) for start in range(0, n_crops - size + 1, size))
        ]  # fmt: skip

    def _is_adversarial(self, position: int) -> bool:
        step = position // self.run.train.micro_batches
        return len(self.phases) > 1 and step >= self.config.vocoder.adversarial_from * self.run.train.steps

    def _readable(self, items: Sequence[Item], i: int) -> torch.Tensor:
        """The samples of item i, or of the next one that can be read."""
        for k in range(len(items)):
            clip = self.data.value(items[(i + k) % len(items)])
            if clip is not None:
                return clip
        raise UserError("vocoder: no recording can be read; run `muomni data verify`.")

    def _crop(self, clip: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """CROP code frames from a random start and their samples; a short clip is followed by silence."""
        hop, factor = self.config.mel.hop_length, self.config.codec.factor
        n_frames = CROP * factor
        start = int(torch.randint(max(1, len(clip) // hop - n_frames + 1), (), generator=draw))
        first = max(0, start - BEFORE)
        wave = clip[first * hop : (start + n_frames) * hop].float() / 32_767.0
        wave = F.pad(wave, (0, (start + n_frames - first) * hop - len(wave)))
        if self.run.train.augment:
            wave = wave * float(2.0 ** (torch.rand((), generator=draw) * 2.0 - 1.5))
        frames = normalise(log_mel(wave, self.config.mel), self.config.mel)[start - first :]
        return stack_frames(frames, self.config.mel, factor=factor), wave[(start - first) * hop :]

    def held_out(self, split: Split) -> Iterator[WaveBatch]:
        """Some clips whole, one at a time."""
        for item in spread([*self.data.speech(split)], MEASURED):
            clip = self.data.value(item)
            if clip is not None:
                wave = clip.float() / 32_767.0
                frames = stack_frames(
                    normalise(log_mel(wave, self.config.mel), self.config.mel),
                    self.config.mel, factor=self.config.codec.factor,
                )  # fmt: skip
                n_samples = len(frames) * self.config.samples_per_frame
                wave = F.pad(wave, (0, n_samples - len(wave)))
                yield WaveBatch(
                    frames=frames[None],
                    wave=wave[None],
                    coded=torch.zeros(1, dtype=torch.bool),
                    adversarial=False,
                )

    def counts(self, batch: WaveBatch) -> dict[str, torch.Tensor | int]:
        """Values compared at all resolutions; crops for what is a mean over judges."""
        n_samples = batch.wave.shape[1] - self._n_held * self.config.mel.hop_length
        n_crops = len(batch.wave)
        found: dict[str, torch.Tensor | int] = {**SpectralDistance.counts(n_crops, n_samples)}
        return found | (dict.fromkeys(("fooled", "features", "judged"), n_crops) if batch.adversarial else {})

    @property
    def _n_held(self) -> int:
        return self.config.vocoder.n_fft // self.config.mel.hop_length - 1

    def made(self, model: nn.Module, batch: WaveBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """What the vocoder makes of the crops, and what was recorded, (B, n_samples) both."""
        codec, vocoder = part(model, "codec", Codec), part(model, "vocoder", Vocoder)
        with torch.no_grad():
            copies = codec.decode(codec.encode(batch.frames))
        frames = torch.where(batch.coded[:, None, None], copies.to(batch.frames.dtype), batch.frames)
        wave = vocoder.waveform(frames.unflatten(2, (self.config.codec.factor, -1)).flatten(1, 2))
        return wave, batch.wave[:, : wave.shape[1]]

    def losses(self, model: nn.Module, batch: WaveBatch, phase: str) -> dict[str, torch.Tensor]:
        """Of the generator: L1 distances of log-mel and log-magnitude spectra; with discriminators also how far their
        scores are from those of recordings, and their features. Of the discriminators: least squares.
        """
        if phase == "discriminator":
            with torch.no_grad():
                wave, recorded = self.made(model, batch)
            return {"judged": judged(part(model, "discriminators", Discriminators), wave, recorded)}
        wave, recorded = self.made(model, batch)
        found = part(model, "distance", SpectralDistance)(wave, recorded)
        if batch.adversarial:
            found |= fooled(part(model, "discriminators", Discriminators), wave, recorded)
        return found

    def fill(self, batch: WaveBatch) -> tuple[int, int]:
        """Code frames; crops have no padding."""
        n_frames = batch.frames.shape[0] * batch.frames.shape[1]
        return n_frames, n_frames

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """A recording, what the vocoder makes of its log-mel, and of the codec's copy; see spoken_samples."""
        return vocoder_samples(self, model, split, folder)

    def evaluate(self, model: nn.Module, split: Split) -> list[Figure]:
        """Spectral distance of held-out recordings, from their own log-mel and the codec's, against Griffin-Lim."""
        codec, vocoder = part(model, "codec", Codec), part(model, "vocoder", Vocoder)
        mel, device = self.config.mel, self.device(model)
        griffin_lim = GriffinLim(mel, self.config.griffin_lim, block=self.config.codec.factor)
        sums: dict[tuple[str, str], float] = {}
        n = 0
        for batch in self.held_out(split):
            frames, wave = batch.frames.to(device), batch.wave[0]
            copies = codec.decode(codec.encode(frames))
            for what, given in (("recordings", frames), ("the codec's copies", copies)):
                rows = given.reshape(-1, mel.n_mels) * mel.std + mel.mean
                for by, heard in (("vocoder", vocoder(rows).cpu()), ("Griffin-Lim", griffin_lim(rows.cpu()))):
                    sums[what, by] = sums.get((what, by), 0.0) + _distance(model, heard, wave)
            n += 1
        return [
            Figure(
                name=f"vocoder spectral distance, {what}", value=sums[what, "vocoder"] / n,
                baseline=sums[what, "Griffin-Lim"] / n, baseline_name="Griffin-Lim of the same log-mel", n=n,
            )
            for what in ("recordings", "the codec's copies")
        ]  # fmt: skip


def _distance(model: nn.Module, wave: torch.Tensor, recorded: torch.Tensor) -> float:
    """Mean absolute difference of log-magnitudes; waves (n_samples,) on any device."""
    device = next(part(model, "distance", SpectralDistance).buffers()).device
    found = part(model, "distance", SpectralDistance)(wave[None].to(device), recorded[None].to(device))
    return float(found["magnitude"]) / SpectralDistance.counts(1, len(wave))["magnitude"]
