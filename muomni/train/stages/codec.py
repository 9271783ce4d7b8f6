"""Stage codec: log-mel frames through eight residual codebooks and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import RunConfig
from muomni.data.audio import audio_frames
from muomni.data.batch import Batch
from muomni.data.items import Item, QuestionItem, SpeechItem, Split
from muomni.data.usable import Usable
from muomni.errors import UserError
from muomni.models.codec import Codec
from muomni.models.discriminators import LogMelDiscriminators
from muomni.train.samples import spread
from muomni.train.stage import Figure, Parts, StageBase, generator, part
from muomni.train.stages.adversarial import fooled, judged
from muomni.train.stages.spoken_samples import codec_samples

CROP = 16
"""Code frames of a training crop (1.28 s)."""
SCALES = (2, 4, 8)
"""Frames and bands of the patches that are compared beside single values."""
MEAN_OF = 600
"""Training clips, spread over the split, whose mean frame is the trivial baseline."""


@dataclass(frozen=True, kw_only=True)
class FrameBatch(Batch):
    """Crops of clips."""

    frames: torch.Tensor
    """(B, T, factor * n_mels) float32 normalised log-mel."""
    n_active: torch.Tensor
    """() int64: codebooks in use for this batch (codebook dropout); a tensor, so that one graph serves them all."""
    adversarial: bool = False
    """Whether the discriminators take part yet."""


class CodecStage(StageBase):
    """Reconstruction of log-mel with any first k codebooks; at will also what discriminators say."""

    name = "codec"
    saved = ("codec", "discriminators")
    slow_batches = True

    def __init__(self, run: RunConfig) -> None:
        """Weights come from the configuration; without discriminators there is one phase."""
        super().__init__(run)
        cfg = run.model.codec
        self.weights = {
            "l1": 1.0,
            "l2": 1.0,
            "scales": cfg.scales_weight,
            "commitment": cfg.commitment_weight,
        }
        if cfg.adversarial_from < 1:
            self.phases += ("discriminator",)
            self.weights |= {"fooled": 0.1, "features": 0.1, "judged": 1.0}
            # A recorded step could not take the discriminators in later.
            self.capturable = False

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """Compute every clip's frames once; start the codec from the seed."""
        self.data = Usable(self.quarantine, self.source, kinds=("speech", "questions"), read=self._read)
        self.need("recordings", self.data.speech)
        model = Parts(codec=Codec(run.model.codec, run.model.mel))
        if len(self.phases) > 1:
            model.add_module("discriminators", LogMelDiscriminators(run.model.codec.d_discriminator))
        return model

    def parameters(self, model: nn.Module, phase: str) -> dict[str, nn.Parameter]:
        """The codec's, or the discriminators'."""
        name = "discriminators." if phase == "discriminator" else "codec."
        return {k: p for k, p in model.named_parameters() if k.startswith(name)}

    def takes(self, phase: str, batch: FrameBatch) -> bool:
        """The discriminators wait until the codec has learned to reconstruct."""
        return phase != "discriminator" or batch.adversarial

    def clips(self, items: Sequence[Item]) -> list[torch.Tensor]:
        """Normalised, stacked log-mel of those recordings that can be read, (n_frames, factor * n_mels) each."""
        return [clip for item in items if (clip := self.data.value(item)) is not None]

    def _read(self, item: Item) -> torch.Tensor:
        assert isinstance(item, SpeechItem | QuestionItem)
        return audio_frames(self.source.waveform(item), self.config.mel, factor=self.config.codec.factor)

    def batch(self, position: int, parts: int = 1) -> list[FrameBatch]:
        """Random crops: a clip is drawn in proportion to its length."""
        items = self._items("train")
        weights = torch.tensor([float(self.config.audio_tokens(item.n_samples)) for item in items])
        n_crops = max(1, self.run.train.batch_tokens // CROP)
        draw = generator(self.run.seed, 3, position)
        chosen = torch.multinomial(weights, n_crops, replacement=True, generator=draw).tolist()
        crops = torch.stack([self._crop(self._readable(items, i), draw) for i in chosen])
        # Half the batches use all codebooks, the others a random first few: any prefix must decode.
        n_active = n_codebooks = self.config.codec.n_codebooks
        if self.run.train.augment and position % 2:
            n_active = int(torch.randint(1, n_codebooks + 1, (), generator=draw))
        step = position // self.run.train.micro_batches
        waits = self.config.codec.adversarial_from * self.run.train.steps
        adversarial = len(self.phases) > 1 and step >= waits
        # Crops that fill no piece are left out: at most parts - 1 of them.
        size = max(1, n_crops // parts)
        return [
            FrameBatch(
                frames=crops[start : start + size], n_active=torch.tensor(n_active), adversarial=adversarial
            )
            for start in range(0, n_crops - size + 1, size)
        ]

    def held_out(self, split: Split) -> Iterator[FrameBatch]:
        """Each clip once, whole."""
        for clip in self.clips(self._items(split)):
            yield FrameBatch(frames=clip[None], n_active=torch.tensor(self.config.codec.n_codebooks))

    def _items(self, split: Split) -> list[SpeechItem | QuestionItem]:
        return [*self.data.speech(split), *self.data.questions(split)]

    def _readable(self, items: Sequence[Item], i: int) -> torch.Tensor:
        """The frames of item i, or of the next one that can be read."""
        for k in range(len(items)):
            clip = self.data.value(items[(i + k) % len(items)])
            if clip is not None:
                return clip
        raise UserError("codec: no recording can be read; run `muomni data verify`.")

    def _crop(self, clip: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """CROP frames from a random start; a short clip is followed by its own beginning."""
        start = int(torch.randint(max(1, len(clip) - CROP + 1), (), generator=draw))
        index = (start + torch.arange(CROP)) % len(clip)
        crop = clip[index]
        if self.run.train.augment:
            # Loudness only: half a unit is 2 nepers of power times std.
            crop = crop + 0.1 * torch.randn((), generator=draw)
        return crop

    def counts(self, batch: FrameBatch) -> dict[str, torch.Tensor | int]:
        """Values to reconstruct, patches of them, frames to quantise; crops for what is a mean over judges."""
        n_crops, n_values = len(batch.frames), batch.frames.numel()
        patches = sum(n_values // scale**2 for scale in SCALES)
        found: dict[str, torch.Tensor | int] = {"l1": n_values, "l2": n_values, "scales": patches}
        found["commitment"] = n_crops * batch.frames.shape[1]
        return found | (dict.fromkeys(("fooled", "features", "judged"), n_crops) if batch.adversarial else {})

    def losses(self, model: nn.Module, batch: FrameBatch, phase: str) -> dict[str, torch.Tensor]:
        """Absolute and squared errors of normalised log-mel and of its patches, the commitment, what judges say.

        Keeps the statistics of this micro-batch for `gather` when in train mode.
        """
        codec = part(model, "codec", Codec)
        if phase == "discriminator":
            with torch.no_grad():
                made = codec._frames(self._quantised(codec, batch)[0])
            judges = part(model, "discriminators", LogMelDiscriminators)
            return {"judged": judged(judges, self._rows(made), self._rows(batch.frames))}
        quantised, commitment = self._quantised(codec, batch, learns=codec.quantizer.training)
        made = codec._frames(quantised)
        difference = made - batch.frames
        patches = [F.avg_pool2d(self._rows(difference)[:, None], scale).abs().sum() for scale in SCALES]
        found = {
            "l1": difference.abs().sum(), "l2": difference.square().sum(), "scales": torch.stack(patches).sum(),
            "commitment": commitment,
        }  # fmt: skip
        if batch.adversarial:
            judges = part(model, "discriminators", LogMelDiscriminators)
            found |= fooled(judges, self._rows(made), self._rows(batch.frames))
        return found

    @staticmethod
    def _quantised(
        codec: Codec, batch: FrameBatch, *, learns: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `Codec.forward` quantises, straight through, with n_active as a tensor; and the commitment.

        Levels that are not in use are computed and weigh nothing. learns: keep the codebooks' statistics.
        """
        z = codec._latent(batch.frames)
        rows = z.reshape(-1, z.shape[-1])
        codes, books = codec.quantizer.encode(rows), codec.quantizer.codebooks
        levels = torch.arange(codes.shape[1], device=rows.device)
        totals = F.embedding(codes + levels * books.shape[1], books.flatten(0, 1)).cumsum(1)
        if learns:
            # What each level was given: the latent less the words of the levels before.
            given = rows.detach().float()[:, None] - F.pad(totals[:, :-1], (0, 0, 1, 0))
            codec.quantizer._pending.append((given, codes, torch.ones(len(rows), device=rows.device)))
        errors = (rows.float()[:, None] - totals).square().mean(-1) * (levels < batch.n_active)
        active = totals.index_select(1, batch.n_active.view(1) - 1)[:, 0]
        straight = rows + (active.to(rows.dtype) - rows).detach()
        return straight.view_as(z), errors.sum() / batch.n_active

    def _rows(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, factor * n_mels) -> (B, T * factor, n_mels) of at least float32."""
        wide = frames.to(torch.promote_types(frames.dtype, torch.float32))
        return wide.unflatten(2, (self.config.codec.factor, -1)).flatten(1, 2)

    def gather(self, model: nn.Module) -> None:
        """Take a micro-batch's statistics off the quantiser."""
        pending = part(model, "codec", Codec).quantizer._pending
        self.gathered.extend(pending)
        pending.clear()

    def after_step(self, model: nn.Module) -> None:
        """Move the codebooks, once a step."""
        codec = part(model, "codec", Codec)
        codec.quantizer._pending.extend(self.gathered)
        self.gathered.clear()
        codec.commit()

    def fill(self, batch: FrameBatch) -> tuple[int, int]:
        """Code frames; crops have no padding."""
        n_frames = batch.frames.shape[0] * batch.frames.shape[1]
        return n_frames, n_frames

    def evaluate(self, model: nn.Module, split: Split) -> list[Figure]:
        """Absolute log-mel error of held-out recordings with the first k codebooks, against the mean frame."""
        codec = part(model, "codec", Codec)
        device, std = self.device(model), self.config.mel.std
        n_mels = self.config.mel.n_mels
        reference = spread(self._items("train"), MEAN_OF)
        mean = torch.cat([clip.reshape(-1, n_mels) for clip in self.clips(reference)]).mean(0)
        held_out = self.clips(self.data.speech(split))
        total = sum(clip.numel() for clip in held_out)
        baseline = (
            sum(float((clip.reshape(-1, n_mels) - mean).abs().sum()) for clip in held_out) / total * std
        )
        levels = sorted(
            {1, 2, 4, self.config.codec.n_codebooks} & set(range(1, self.config.codec.n_codebooks + 1))
        )
        errors = dict.fromkeys(levels, 0.0)
        for clip in held_out:
            codes = codec.encode(clip[None].to(device))
            for k in levels:
                errors[k] += float((codec.decode(codes[:, :k])[0].cpu() - clip).abs().sum())
        figures = [
            Figure(
                name=f"codec log-mel error, {k} codebooks", value=errors[k] / total * std, baseline=baseline,
                baseline_name="mean frame", n=len(held_out),
            )
            for k in levels
        ]  # fmt: skip
        for name, values in codec.quantizer.usage().items():
            figures.append(
                Figure(
                    name=f"codec codes {name}, worst level", value=float(values.min()),
                    baseline=1.0 if name == "perplexity" else 1.0 / self.config.codec.codebook_size,
                    baseline_name="collapsed codebook", better="higher", n=len(values),
                )
            )  # fmt: skip
        return figures

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """A recording beside its copy; see spoken_samples."""
        return codec_samples(self, model, split, folder)
