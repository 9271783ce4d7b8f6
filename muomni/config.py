"""Frozen configuration of the model and of a run: fields, validation, token-budget arithmetic.

Standard library only. Strict conversion to and from plain types is in settings.py, the sizes in recipes.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from muomni.budget import TokenBudget, TokenBudgetError
from muomni.parts import (
    AudioConfig,
    CodecConfig,
    GriffinLimConfig,
    MelConfig,
    TalkerConfig,
    ThinkerConfig,
    VisionConfig,
    VocoderConfig,
)
from muomni.settings import require as _require
from muomni.tokens import N_SPECIAL

SIZES: tuple[str, ...] = ("nano", "tiny", "base")
STAGES: tuple[str, ...] = ("text", "audio", "vision", "codec", "vocoder", "omni", "talker")
"""In training order. The Talker comes last because it is conditioned on the Thinker that will speak."""
DEPENDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text": ("size", "thinker", "max_seq_len"),
        "audio": ("size", "audio", "mel"),
        "vision": ("size", "vision"),
        "codec": ("size", "codec", "mel"),
        "vocoder": ("size", "vocoder", "mel"),
        "omni": ("size", "thinker", "vision", "audio", "mel", "max_seq_len"),
        "talker": ("size", "thinker", "codec", "talker", "mel", "max_seq_len"),
    }
)
"""Groups of the model's configuration that a stage's result depends on: another stage of the run may differ in
all others, since each one's result can be put in the place of another."""
MAX_FILM_FRAMES = 8
"""Most frames taken of a film."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All parts of one model."""

    size: str
    """Name of the size this started from."""
    thinker: ThinkerConfig
    vision: VisionConfig
    audio: AudioConfig
    codec: CodecConfig
    talker: TalkerConfig
    vocoder: VocoderConfig
    mel: MelConfig = field(default_factory=MelConfig)
    griffin_lim: GriffinLimConfig = field(default_factory=GriffinLimConfig)
    max_seq_len: int = 512
    """Positions of one sequence, media included."""

    def __post_init__(self) -> None:
        """Reject widths the kernels or the architecture cannot use."""
        for part in ("thinker", "vision", "audio", "codec", "talker", "vocoder"):
            value = getattr(self, part)
            for name in ("d_model", "d_ff"):
                width = getattr(value, name, 64)
                _require(
                    width > 0 and width % 64 == 0, f"{part}.{name}: expected a multiple of 64, got {width}."
                )
            heads = getattr(value, "n_heads", 1)
            _require(
                value.d_model % heads == 0,
                f"{part}.n_heads: {heads} does not divide d_model {value.d_model}.",
            )
        for part, value in (("thinker", self.thinker), ("talker", self.talker)):
            _require(
                value.n_heads % value.n_kv_heads == 0,
                f"{part}.n_kv_heads: expected a divisor of n_heads {value.n_heads}, got {value.n_kv_heads}.",
            )
            _require(
                value.head_dim % 2 == 0, f"{part}.head_dim: expected an even number, got {value.head_dim}."
            )
        _require(
            self.thinker.vocab_size > N_SPECIAL + 256,
            f"thinker.vocab_size: expected more than {N_SPECIAL + 256} (special tokens and bytes), "
            f"got {self.thinker.vocab_size}.",
        )
        _require(
            self.vision.image_size % self.vision.patch_size == 0,
            f"vision.image_size: expected a multiple of patch_size {self.vision.patch_size}, "
            f"got {self.vision.image_size}.",
        )
        _require(
            self.vision.patch_size % 4 == 0 or not self.vision.cell_channels,
            f"vision.patch_size: expected a multiple of 4 with cell_channels, got {self.vision.patch_size}.",
        )
        grid, side = math.isqrt(self.vision.n_image_tokens - 1), math.isqrt(self.vision.n_patches)
        _require(
            grid * grid == self.vision.n_image_tokens - 1 and (grid == 0 or side % grid == 0),
            f"vision.n_image_tokens: expected 1 or k * k + 1 with k dividing {side}, "
            f"got {self.vision.n_image_tokens}.",
        )
        _require(
            self.thinker.mix_kernel >= 1,
            f"thinker.mix_kernel: expected at least 1 position, got {self.thinker.mix_kernel}.",
        )
        _require(
            self.talker.delay in (0, 1), f"talker.delay: expected 0 or 1 frame, got {self.talker.delay}."
        )
        _require(
            0 < self.talker.depth_share <= 1,
            f"talker.depth_share: expected a share above 0, at most 1, got {self.talker.depth_share}.",
        )
        _require(
            self.audio.factor == self.codec.factor,
            f"codec.factor: expected audio.factor {self.audio.factor} (one frame rate), got {self.codec.factor}.",
        )

    @property
    def samples_per_frame(self) -> int:
        """Waveform samples per audio token (1,280)."""
        return self.mel.hop_length * self.audio.factor

    @property
    def frame_rate(self) -> float:
        """Audio tokens, code frames and Talker steps per second (12.5 Hz)."""
        return self.mel.sample_rate / self.samples_per_frame

    @property
    def max_audio_tokens(self) -> int:
        """Audio positions one clip may take: a quarter of the context."""
        return self.max_seq_len // 4

    @property
    def max_audio_samples(self) -> int:
        """Waveform samples of the longest clip (163,840: 10.24 s)."""
        return self.max_audio_tokens * self.samples_per_frame

    def film_frames(self, seconds: float) -> int:
        """Frames taken of a film: one a second, at least one, at most MAX_FILM_FRAMES and a quarter of the context."""
        fit = self.max_seq_len // 4 // self.vision.n_image_tokens
        return max(1, min(int(seconds), MAX_FILM_FRAMES, fit))

    def film_steps(self, seconds: float) -> int:
        """The audio position that is nearest to a time of a film, counted from its beginning."""
        return round(self.frame_rate * seconds)

    def audio_tokens(self, n_samples: int) -> int:
        """Audio positions of a clip of n_samples at mel.sample_rate: ceil(seconds * 12.5)."""
        return -(-n_samples // self.samples_per_frame)

    def budget(self, *, n_text: int, n_images: int = 0, audio_samples: tuple[int, ...] = ()) -> TokenBudget:
        """Positions needed by a sequence; a film is its frames among n_images and its sound among audio_samples.

        Raises TokenBudgetError when a clip is longer than max_audio_tokens or the sum exceeds max_seq_len.
        """
        for n_samples in audio_samples:
            n_tokens = self.audio_tokens(n_samples)
            if n_tokens > self.max_audio_tokens:
                raise TokenBudgetError(
                    f"audio: a clip of {n_samples / self.mel.sample_rate:.2f} s needs {n_tokens} tokens, at most "
                    f"{self.max_audio_tokens} ({self.max_audio_samples / self.mel.sample_rate:.2f} s) fit; shorten it."
                )
        budget = TokenBudget(
            n_text=n_text,
            n_image=n_images * self.vision.n_image_tokens,
            n_audio=sum(self.audio_tokens(n) for n in audio_samples),
            max_seq_len=self.max_seq_len,
        )
        if budget.overflow:
            raise TokenBudgetError(
                f"sequence: {budget.n_text} text + {budget.n_image} image + {budget.n_audio} audio tokens = "
                f"{budget.total}, at most {self.max_seq_len} fit; remove {budget.overflow} tokens."
            )
        return budget


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How a stage's parameters are updated."""

    name: Literal["adamw", "muon"] = "adamw"
    """AdamW; or Muon for the matrices of the blocks and AdamW for all other parameters."""
    lr: float = 2e-3
    """Peak learning rate, of Muon too: its update is scaled to the size of AdamW's."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: a cosine; or warm-up, stable, decay (lr until the last decay_share of the steps)."""
    min_lr_ratio: float = 0.05
    """Last learning rate over the peak."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    decay_share: float = 0.2
    """Share of all steps that a wsd schedule decays over."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.98
    """Decay of the second moment."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """What AdamW's two moments are kept in; bf16: half their memory, rounded to 0.4 %."""
    weight_decay: float = 0.05
    """Decoupled decay of matrices; vectors and embeddings are not decayed."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    ema_decay: float = 0.0
    """Decay a step of the averaged weights, which are then those evaluated and saved; 0: no averages."""
    spike_sigma: float = 0.0
    """Standard deviations over the mean gradient norm from which a step is left out; 0: none is."""
    spike_window: int = 100
    """Accepted steps that mean and deviation remember, and that come before the first judgement."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What one stage's run does."""

    steps: int
    """Optimizer steps."""
    batch_tokens: int = 2_048
    """Positions of one packed row (text, omni) or frames of one batch (audio, codec, talker)."""
    batch_items: int = 16
    """Most items (pictures, clips, documents) of one batch; sizes the fixed buffers."""
    micro_batches: int = 1
    """Rows whose gradients are added up before a step, shared evenly by all processes of a run."""
    shard: bool = False
    """Split parameters, gradients and moments over the processes of a run (FSDP2); nothing for one process."""
    log_every: int = 10
    """Steps between metric rows."""
    eval_every: int = 0
    """Steps between evaluations on the validation split; 0: only at the end."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Newest checkpoints kept."""
    augment: bool = True
    """Augment pictures and clips."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the losses' arithmetic; auto: bf16 on CUDA. Weights, gradients and moments are float32 always."""
    recompute: bool = False
    """Compute blocks again in the backward instead of keeping what they made: less memory, about a third more work."""
    workers: int = -1
    """Background processes that make batches; -1: 2 on CUDA, none on a CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Losses and their gradients through torch.compile; auto: on CUDA only."""
    graph: Literal["auto", "on", "off"] = "auto"
    """A step replayed as CUDA graphs; auto: on CUDA, where the stage allows it."""
    bad_steps: int = 5
    """Steps left out in a row after which the run goes back to its last checkpoint, on other data; 0: never."""
    bad_samples: float = 0.01
    """Share of a split's samples that may be unreadable: these are left out and listed, more end the run."""


FREE: tuple[str, ...] = (
    "workers", "compile", "graph", "recompute", "shard", "log_every", "eval_every", "save_every", "keep", "bad_samples",
)  # fmt: skip
"""Fields of a TrainConfig that a run may be resumed with others of: they say how it is made, not what it becomes."""

MOST_BETA2_BF16 = 0.995
"""Eight bits hold a moment to 0.4 %: it must change faster than that."""

_RANGES: dict[str, tuple[float, float]] = {
    "optim.decay_share": (0, 1), "optim.ema_decay": (0, 1), "optim.spike_sigma": (0, math.inf),
    "optim.spike_window": (2, math.inf), "train.bad_steps": (0, math.inf), "train.workers": (-1, 257),
    "train.bad_samples": (0, 1), "train.micro_batches": (1, math.inf), "train.log_every": (1, math.inf),
    "train.batch_tokens": (1, math.inf), "train.batch_items": (1, math.inf), "train.keep": (1, math.inf),
    "train.save_every": (0, math.inf), "train.eval_every": (0, math.inf), "optim.warmup_steps": (0, math.inf),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One stage of one model: everything needed to repeat it."""

    stage: str
    """One of STAGES."""
    model: ModelConfig
    train: TrainConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    """Seed of initialisation, order, augmentation and dropout."""
    data: str = "embedded"
    """What it is trained on: embedded, or prepared sets by name or path, with commas between."""

    def __post_init__(self) -> None:
        """Reject unknown stages and empty runs."""
        _require(self.stage in STAGES, f"stage: expected one of {', '.join(STAGES)}, got {self.stage!r}.")
        _require(self.train.steps > 0, f"train.steps: expected a positive number, got {self.train.steps}.")
        _require(
            self.optim.moments == "fp32" or self.optim.beta2 <= MOST_BETA2_BF16,
            f"optim.beta2: expected at most {MOST_BETA2_BF16} with optim.moments=bf16, whose second moment would not "
            f"move, got {self.optim.beta2}.",
        )
        for name, (least, below) in _RANGES.items():
            value = operator.attrgetter(name)(self)
            _require(least <= value < below, f"{name}: expected {least} <= value < {below}, got {value}.")
