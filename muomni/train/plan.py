"""What a training step of a stage needs in memory, and the largest micro-batch that fits.

Weights, gradients and moments are counted; the rest of a step's peak is measured at some small micro-batches on this
machine's CPU and drawn on as a straight line: every batch is packed, so nothing grows faster than its positions.
No data and no trained stage are needed. The backends are those of the CPU; a GPU's keep other temporaries.
Precision "auto" is planned as a GPU has it: bf16.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from muomni.config import RunConfig
from muomni.data.audio import CTC_SYMBOLS
from muomni.data.batch import pack
from muomni.data.tasks_several import MAX_PICTURES
from muomni.data.template import Document
from muomni.errors import UserError
from muomni.models.audio import AudioEncoder, CTCHead
from muomni.models.codec import Codec
from muomni.models.discriminators import Discriminators, LogMelDiscriminators
from muomni.models.fuse import Projector
from muomni.models.script import Text
from muomni.models.spectral import SpectralDistance
from muomni.models.talker import Talker
from muomni.models.thinker import Thinker
from muomni.models.vision import ContrastModel, VisionEncoder
from muomni.models.vocoder import Vocoder
from muomni.train.optim import Optimizer
from muomni.train.stage import Parts, freeze
from muomni.train.stages import stage as make_stage
from muomni.train.stages import utterances, vision, vocoder
from muomni.train.stages.audio import AudioStage
from muomni.train.stages.codec import CROP, FrameBatch
from muomni.train.step import Step

RESERVED = int(0.8 * 2**30)
"""Bytes of a card that its driver and context take: 11.2 of 12 GiB are left."""
PROBE = 1
"""Units of the first measured micro-batch."""
LARGEST_PROBE = 16
"""Units of the largest one."""
EVEN = 0.05
"""Share by which the bytes of a unit may differ from one pair of probes to the next and be taken for even."""
ENOUGH = 16_384
"""Positions of a micro-batch beyond which a larger one is no faster."""
LARGEST = 1 << 20
"""Most units a plan names."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes of a step, and how many units (of `unit` positions or pairs each) fit."""

    stage: str
    unit: int
    """Positions, frames, or pictures with captions (vision) of one unit."""
    weights: int
    """Parameters and buffers, of frozen parts too."""
    gradients: int
    moments: int
    per_unit: float
    """Batch, activations and temporaries of one more unit."""
    base: float
    """What a step of many units needs beside all of these."""
    least: int
    """What the smallest measured step needs beside weights, gradients and moments."""

    def peak(self, units: int) -> int:
        """Predicted peak bytes of a step with a micro-batch of so many units."""
        fixed = self.weights + self.gradients + self.moments
        return round(fixed + max(self.least, self.base + units * self.per_unit))

    def fitting(self, memory: int) -> int:
        """Units of the largest micro-batch within `memory` bytes. Raises UserError when not even one fits."""
        low, high = 0, LARGEST
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.peak(middle) <= memory else (low, middle - 1)
        if not low:
            raise UserError(
                f"memory: one micro-batch of {self.unit} needs {self.peak(1) / 2**30:.2f} GiB, "
                f"{memory / 2**30:.2f} are usable; choose a smaller size or more memory."
            )
        return low


def parse_memory(text: str) -> int:
    """'12GB', '12 GiB' or '900MB' as usable bytes: cards are named in GiB, of which the driver takes RESERVED.

    Raises UserError for anything else, or less than RESERVED.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GM])i?B?\s*", text, re.IGNORECASE)
    if match is None:
        raise UserError(f"memory: expected a size such as 12GB or 900MB, got {text!r}.")
    size = int(float(match[1]) * (2**30 if match[2].upper() == "G" else 2**20))
    if size <= RESERVED:
        raise UserError(f"memory: expected more than the driver's {RESERVED / 2**30:.1f} GiB, got {text!r}.")
    return size - RESERVED


def plan(run: RunConfig) -> Plan:
    """Measure a stage's step at PROBE units and twice as many, on and on until it grows evenly; some seconds.

    Few positions cost less than the optimizer's own temporaries: then the peak does not grow with them at first. It may
    grow faster at first, too.
    """
    unit = unit_of(run)
    model = stage_model(run)
    static = _static(run, model)
    units, slopes = PROBE, [0.0]
    peaks = [dynamic_peak(run, model, units * unit)]
    while len(peaks) < 3 or (abs(slopes[-1] - slopes[-2]) > EVEN * slopes[-1] and units < LARGEST_PROBE):
        units *= 2
        peaks.append(dynamic_peak(run, model, units * unit))
        slopes.append((peaks[-1] - peaks[-2]) / (units / 2))
    return Plan(
        stage=run.stage, unit=unit, weights=static[0], gradients=static[1], moments=static[2],
        per_unit=slopes[-1], base=peaks[-1] - units * slopes[-1], least=peaks[0],
    )  # fmt: skip


def choose(run: RunConfig, memory: int) -> tuple[RunConfig, Plan]:
    """The settings that hold ENOUGH positions in `memory` bytes at the least cost.

    Blocks kept, else computed again, else with bfloat16 moments too. Where none holds them, those with the most
    room. Returns the run with its largest micro-batch, and its plan.
    Raises UserError when not even the smallest fits.
    """
    found: list[tuple[int, RunConfig, Plan]] = []
    error: UserError | None = None
    # What the user has chosen already is not taken back.
    ways = dict.fromkeys(
        (again or run.train.recompute, "bf16" if "bf16" in (moments, run.optim.moments) else "fp32")
        for again, moments in ((False, "fp32"), (True, "fp32"), (True, "bf16"))
    )
    for again, moments in ways:
        candidate = dataclasses.replace(
            run, train=dataclasses.replace(run.train, recompute=again),
            optim=dataclasses.replace(run.optim, moments=moments),
        )  # fmt: skip
        planned = plan(candidate)
        try:
            n = planned.fitting(memory) * planned.unit
        except UserError as none_fits:
            error = none_fits
            continue
        found.append((n, candidate, planned))
        if n >= ENOUGH:
            break
    if not found and error is not None:
        raise error
    n, candidate, planned = max(found, key=lambda entry: min(entry[0], ENOUGH))
    return scaled(candidate, n), planned


def unit_of(run: RunConfig) -> int:
    """Positions of the smallest step between micro-batches: one context, or a few pictures."""
    return 8 if run.stage == "vision" else run.model.max_seq_len


def scaled(run: RunConfig, n: int) -> RunConfig:
    """The run with n positions (or pairs, stage vision) a micro-batch, and room for items in proportion."""
    train = run.train
    items = n if run.stage == "vision" else max(1, -(-n * train.batch_items // train.batch_tokens))
    return dataclasses.replace(run, train=dataclasses.replace(train, batch_tokens=n, batch_items=items))


def table(found: Plan, run: RunConfig, memory: int) -> list[str]:
    """What `muomni plan` prints of `choose`: the parts of the peak, and the settings that give it."""
    train = run.train
    n = train.batch_items if run.stage == "vision" else train.batch_tokens
    peak = found.peak(n // found.unit)
    rest = peak - found.weights - found.moments - found.gradients
    rows = [
        ("weights and buffers", found.weights), ("gradients", found.gradients), ("moments", found.moments),
        ("batch, activations, temporaries", rest), ("peak", peak), ("usable", memory),
    ]  # fmt: skip
    what = f"{n} {'pairs' if run.stage == 'vision' else 'positions'}"
    names = ("batch_items",) if run.stage == "vision" else ("batch_tokens", "batch_items")
    kept = "blocks computed again" if train.recompute else "blocks kept"
    precision = "float32" if train.precision == "fp32" else "bf16"
    return [
        *(f"{name:<34}{size / 2**20:>12,.1f} MiB" for name, size in rows),
        f"micro-batch: {what} ({precision}, eager, {kept}, {found.per_unit / found.unit / 2**10:,.1f} KiB each)",
        f"--set {' '.join(f'train.{name}={getattr(train, name)}' for name in (*names, 'recompute'))} "
        f"optim.moments={run.optim.moments}",
    ]


def measured_peak(run: RunConfig, units: int) -> int:
    """Peak bytes of one real step with a micro-batch of so many units."""
    model = stage_model(run)
    return sum(_static(run, model)) + dynamic_peak(run, model, units * unit_of(run))


def dynamic_peak(run: RunConfig, model: nn.Module, n: int) -> int:
    """Peak bytes a step allocates beside weights, gradients and moments: batch, losses, backward, optimizer.

    n: batch_tokens, or pairs of stage vision. The second step is measured; the first fills caches. `model` is updated.
    """
    run = scaled(run, n)
    precision = "bf16" if run.train.precision == "auto" else run.train.precision
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, precision=precision))
    stage = make_stage(run)
    stage.set_mode(model)
    # Gradients keep their memory from step to step, as in a recorded step and between micro-batches.
    take = Step(stage, run, model, record=lambda work: work)

    def step() -> None:
        batch = full_batch(stage, run)
        take([[batch]], lambda parts: [[batch]], step=0)

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    events = [e for e in results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def _static(run: RunConfig, model: nn.Module) -> tuple[int, int, int]:
    """Bytes of weights and buffers, of gradients, and of the optimizer's state."""
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    stage = make_stage(run)
    trained = {name: p for phase in stage.phases for name, p in stage.parameters(model, phase).items()}
    moments = sum(t.nbytes for t in Optimizer(trained, run.optim).state().values())
    return weights, sum(p.nbytes for p in trained.values()), moments


def stage_model(run: RunConfig) -> nn.Module:
    """A stage's parts with random weights, those of its parents frozen."""
    cfg = run.model
    parts: dict[str, nn.Module]
    if run.stage == "vision":
        return ContrastModel(cfg.vision, vocab_size=cfg.thinker.vocab_size)
    if run.stage == "audio":
        head = CTCHead(cfg.audio.d_model, cfg.audio.ctc_expand, len(CTC_SYMBOLS))
        return Parts(audio=AudioEncoder(cfg.audio, cfg.mel.n_mels), ctc_head=head)
    if run.stage == "codec":
        model = Parts(codec=Codec(cfg.codec, cfg.mel))
        if cfg.codec.adversarial_from < 1:
            model.add_module("discriminators", LogMelDiscriminators(cfg.codec.d_discriminator))
        return model
    if run.stage == "vocoder":
        model = Parts(
            codec=freeze(Codec(cfg.codec, cfg.mel)), vocoder=Vocoder(cfg.mel, cfg.vocoder),
            distance=SpectralDistance(cfg.mel),
        )  # fmt: skip
        if cfg.vocoder.adversarial_from < 1:
            model.add_module("discriminators", Discriminators(cfg.vocoder.d_discriminator))
        return model
    parts = {"thinker": Thinker(cfg.thinker)}
    if run.stage == "omni":
        parts |= {"vision": freeze(VisionEncoder(cfg.vision))}
        parts |= {"audio": freeze(AudioEncoder(cfg.audio, cfg.mel.n_mels))}
        parts |= {"vision_projector": Projector(cfg.vision.d_model, cfg.thinker.d_model)}
        parts |= {"audio_projector": Projector(cfg.audio.d_model, cfg.thinker.d_model)}
    elif run.stage == "talker":
        parts = {"thinker": freeze(parts["thinker"]), "codec": freeze(Codec(cfg.codec, cfg.mel))}
        parts |= {"audio": freeze(AudioEncoder(cfg.audio, cfg.mel.n_mels))}
        parts |= {"ctc_head": freeze(CTCHead(cfg.audio.d_model, cfg.audio.ctc_expand))}
        parts |= {"talker": Talker(cfg.talker, cfg.thinker.d_model, cfg.codec, cfg.mel.n_mels)}
    return Parts(**parts)


def full_batch(stage: Any, run: RunConfig) -> Any:
    """A full batch of noise with the longest items there may be: the shapes of training, its dearest contents."""
    cfg, n, n_items = run.model, run.train.batch_tokens, run.train.batch_items
    width = cfg.mel.n_mels * cfg.audio.factor
    if run.stage == "vision":
        images = torch.randn(n_items, 3, cfg.vision.image_size, cfg.vision.image_size)
        return vision.collate(images, [[1] * vision.MAX_CAPTION] * n_items, n_items=n_items)
    if run.stage == "codec":
        crops = torch.randn(max(1, n // CROP), CROP, width)
        return FrameBatch(
            frames=crops,
            n_active=torch.tensor(cfg.codec.n_codebooks),
            adversarial=cfg.codec.adversarial_from < 1,
        )
    if run.stage == "vocoder":
        n_crops, n_frames = max(1, n // vocoder.CROP), vocoder.CROP
        return vocoder.WaveBatch(
            frames=torch.randn(n_crops, n_frames, width), coded=torch.ones(n_crops, dtype=torch.bool),
            wave=torch.randn(n_crops, n_frames * cfg.samples_per_frame),
            adversarial=cfg.vocoder.adversarial_from < 1,
        )  # fmt: skip
    n_clips = min(n_items, n // cfg.max_audio_tokens)
    if isinstance(stage, AudioStage):
        mels = [torch.randn(cfg.max_audio_tokens * cfg.audio.factor, cfg.mel.n_mels) for _ in range(n_clips)]
        return stage.collate(mels, ["a " * cfg.max_audio_tokens] * n_clips, capacity=n)
    if run.stage == "talker":
        longest = cfg.max_audio_tokens
        codes = torch.randint(cfg.codec.codebook_size, (cfg.codec.n_codebooks, longest))
        state = torch.randn(longest // 4, cfg.thinker.d_model)
        one = utterances.Utterance(
            log_mel=torch.zeros(0, cfg.mel.n_mels), codes=codes, text=Text.of(state, state, [b"text"] * len(state)),
            begins=torch.zeros(0), places=torch.arange(longest), speaker="",
        )  # fmt: skip
        delay = cfg.talker.delay
        n_clips = min(n_items, n // (longest + delay))
        return utterances.collate(
            [one] * n_clips, delay=delay, n_steps=n, n_items=n_items, longest=longest + 1 + delay
        )
    longest, none = cfg.max_seq_len, torch.zeros(0, dtype=torch.int64)
    ids = torch.randint(cfg.thinker.vocab_size, (longest,))
    one = Document(
        input_ids=ids, labels=ids, image_slots=none, audio_slots=none,
        positions=torch.arange(longest)[:, None].expand(-1, 3),
    )  # fmt: skip
    n_docs, size = n // longest, cfg.vision.image_size
    if run.stage == "text":
        return pack([one] * n_docs, n_tokens=n, n_docs=max(n_docs, n_items), max_seq_len=longest)
    return pack(
        [one] * n_docs, n_tokens=n, n_docs=max(n_docs, n_items), max_seq_len=longest,
        n_images=max(n_items, MAX_PICTURES),
        n_image_tokens=cfg.vision.n_image_tokens, image_shape=(3, size, size), n_audio=n, n_clips=n_items,
        max_clip=cfg.max_audio_tokens, frame_width=width,
    )  # fmt: skip
