"""Named complete runs: a size and a stage give a frozen RunConfig; `debug` is its twin of a few steps."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from muomni.config import (
    SIZES,
    STAGES,
    AudioConfig,
    CodecConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TalkerConfig,
    ThinkerConfig,
    TrainConfig,
    VisionConfig,
    VocoderConfig,
)
from muomni.settings import ConfigError


def nano() -> ModelConfig:
    """Minutes on two CPU cores: the demo and continuous integration."""
    return ModelConfig(
        size="nano",
        thinker=ThinkerConfig(
            vocab_size=1_024, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=384
        ),
        vision=VisionConfig(
            image_size=112, cell_channels=32, d_model=64, n_layers=4, n_heads=2, d_ff=192, embed_dim=64
        ),
        audio=AudioConfig(d_model=128, n_layers=4, n_heads=4, d_ff=384),
        codec=CodecConfig(d_model=128, n_layers=2, latent_dim=64),
        talker=TalkerConfig(
            d_model=128,
            n_layers=3,
            n_heads=4,
            n_kv_heads=2,
            head_dim=32,
            d_ff=384,
            depth_d_model=64,
            depth_d_ff=128,
            dropout=0.0,
        ),
        vocoder=VocoderConfig(d_model=128, n_layers=4, d_ff=256, adversarial_from=1.0),
    )


def tiny() -> ModelConfig:
    """The reference dimensions: minutes on a 12 GB GPU, inference on a CPU."""
    return ModelConfig(
        size="tiny",
        thinker=ThinkerConfig(
            vocab_size=8_192, d_model=256, n_layers=8, n_heads=8, n_kv_heads=4, head_dim=32, d_ff=768
        ),
        vision=VisionConfig(d_model=128, n_layers=6, n_heads=4, d_ff=384, embed_dim=128),
        audio=AudioConfig(d_model=192, n_layers=6, n_heads=6, d_ff=512),
        codec=CodecConfig(d_model=256, n_layers=4, latent_dim=128),
        talker=TalkerConfig(
            d_model=256, n_layers=6, n_heads=8, n_kv_heads=4, head_dim=32, d_ff=768,
            depth_d_model=128, depth_layers=2, depth_heads=4, depth_d_ff=384,
        ),
        vocoder=VocoderConfig(d_model=256, n_layers=6, d_ff=512),
    )  # fmt: skip


def base() -> ModelConfig:
    """About 120M parameters in all, within 12 GB."""
    return ModelConfig(
        size="base",
        thinker=ThinkerConfig(
            vocab_size=32_768, d_model=512, n_layers=16, n_heads=8, n_kv_heads=4, head_dim=64, d_ff=1_536
        ),
        vision=VisionConfig(d_model=192, n_layers=12, n_heads=6, d_ff=512, embed_dim=192),
        audio=AudioConfig(d_model=384, n_layers=10, n_heads=6, d_ff=1_024),
        codec=CodecConfig(d_model=384, n_layers=6, latent_dim=192),
        talker=TalkerConfig(
            d_model=384, n_layers=8, n_heads=6, n_kv_heads=3, head_dim=64, d_ff=1_024,
            depth_d_model=192, depth_layers=4, depth_heads=4, depth_d_ff=512,
        ),
        vocoder=VocoderConfig(d_model=384, n_layers=6, d_ff=512, d_discriminator=32),
    )  # fmt: skip


_MODELS = {"nano": nano, "tiny": tiny, "base": base}

# Steps and rates of size nano were tuned on two CPU cores; docs/LOG.md has what was tried.
_NANO: dict[str, tuple[TrainConfig, OptimConfig]] = {
    "text": (
        TrainConfig(steps=600, batch_tokens=1_024, batch_items=64),
        OptimConfig(lr=8e-3),
    ),
    "audio": (
        TrainConfig(steps=1_400, batch_tokens=320, batch_items=32),
        OptimConfig(lr=4e-3),
    ),
    "vision": (TrainConfig(steps=360, batch_items=128), OptimConfig(name="muon", lr=4e-3)),
    "codec": (
        TrainConfig(steps=400, batch_tokens=512, batch_items=64),
        OptimConfig(lr=2e-3),
    ),
    "vocoder": (
        TrainConfig(steps=600, batch_tokens=128, batch_items=16),
        OptimConfig(lr=2e-3),
    ),
    "omni": (
        TrainConfig(steps=400, batch_tokens=1_024, batch_items=32),
        OptimConfig(lr=3e-3),
    ),
    "talker": (
        TrainConfig(steps=350, batch_tokens=512, batch_items=32),
        OptimConfig(lr=8e-3),
    ),
}

_SCALED: dict[str, tuple[TrainConfig, OptimConfig]] = {
    "text": (
        TrainConfig(steps=4_000, batch_tokens=16_384, batch_items=512, save_every=500),
        OptimConfig(lr=1e-3),
    ),
    "audio": (
        TrainConfig(steps=6_000, batch_tokens=4_096, batch_items=256, save_every=500),
        OptimConfig(lr=1e-3),
    ),
    "vision": (TrainConfig(steps=4_000, batch_items=256, save_every=500), OptimConfig(lr=1e-3)),
    "codec": (
        TrainConfig(steps=6_000, batch_tokens=4_096, batch_items=128, save_every=500),
        OptimConfig(lr=1e-3),
    ),
    "vocoder": (
        TrainConfig(steps=20_000, batch_tokens=512, batch_items=64, save_every=1_000),
        OptimConfig(lr=5e-4, beta1=0.8, beta2=0.99),
    ),
    "omni": (
        TrainConfig(steps=4_000, batch_tokens=8_192, batch_items=128, save_every=500),
        OptimConfig(lr=5e-4),
    ),
    "talker": (
        TrainConfig(steps=6_000, batch_tokens=4_096, batch_items=128, save_every=500),
        OptimConfig(lr=1e-3),
    ),
}


LEFT_OUT: dict[str, tuple[str, ...]] = {"nano": ("vocoder",)}
"""Stages that a size's complete run does without: what minutes of a CPU make of the vocoder sounds worse than
Griffin-Lim, which needs no training (docs/speech.md)."""


def stages(size: str) -> tuple[str, ...]:
    """The stages of a size's complete run, in training order."""
    return tuple(stage for stage in STAGES if stage not in LEFT_OUT.get(size, ()))


def model(size: str) -> ModelConfig:
    """The ModelConfig of a size. Raises ConfigError for a size that does not exist."""
    if size not in _MODELS:
        close = difflib.get_close_matches(size, SIZES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(SIZES)}."
        raise ConfigError(f"size: {size!r} does not exist; {hint}")
    return _MODELS[size]()


def recipe(size: str, stage: str) -> RunConfig:
    """The run of one stage at one size. Raises ConfigError for an unknown size or stage."""
    config = model(size)
    if stage not in STAGES:
        close = difflib.get_close_matches(stage, STAGES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(STAGES)}."
        raise ConfigError(f"stage: {stage!r} does not exist; {hint}")
    train, optim = (_NANO if size == "nano" else _SCALED)[stage]
    return RunConfig(stage=stage, model=config, train=train, optim=optim)


def debug(size: str, stage: str, *, steps: int = 3) -> RunConfig:
    """The twin of a recipe that runs a few small steps on a CPU, for tests."""
    run = recipe(size, stage)
    train = dataclasses.replace(
        run.train,
        steps=steps,
        batch_tokens=512,
        batch_items=8,
        log_every=1,
        save_every=0,
        eval_every=0,
    )
    return dataclasses.replace(run, train=train, optim=dataclasses.replace(run.optim, warmup_steps=1))


SHORTENED: dict[str, float] = {
    "text": 1.0, "audio": 0.6, "vision": 0.6, "codec": 0.5, "vocoder": 0.6, "omni": 0.6, "talker": 0.8,
}  # fmt: skip
"""Share of a recipe's steps that the demo of continuous integration takes."""


def shortened(size: str, stage: str) -> RunConfig:
    """A recipe with fewer steps, at least ten: the demo of continuous integration."""
    run = recipe(size, stage)
    steps = max(10, round(run.train.steps * SHORTENED[stage]))
    return dataclasses.replace(run, train=dataclasses.replace(run.train, steps=steps))


@dataclass(frozen=True, kw_only=True)
class StageShare:
    """What a stage of a speedrun gets."""

    share: float
    """Of the minutes."""
    lr: float | None = None
    """Peak learning rate of a run of so many steps; None: the recipe's."""


@dataclass(frozen=True, kw_only=True)
class Speedrun:
    """How the minutes of a run from nothing are spent; the shares add up to 1."""

    stages: Mapping[str, StageShare]
    """In training order. Without the vocoder: in minutes Griffin-Lim, which needs none, sounds better."""
    evaluation: float
    """Share kept for the held-out figures."""
    evaluation_seconds: float
    """The least that is kept for them: they take as long after a short run as after a long one."""
    slack: float = 0.03
    """Share kept for steps that take longer than those they were judged by."""
    data: str = "embedded"
    """What it is trained on unless another is named."""


# Reasons for shares and rates: docs/speedrun.md.
_NANO_SPEEDRUN = Speedrun(
    stages={
        "text": StageShare(share=0.13, lr=6e-3),
        "audio": StageShare(share=0.19, lr=3e-3),
        "vision": StageShare(share=0.18),
        "codec": StageShare(share=0.06),
        "omni": StageShare(share=0.16),
        "talker": StageShare(share=0.21, lr=6e-3),
    },
    evaluation=0.04,
    evaluation_seconds=45.0,
)
_SCALED_SPEEDRUN = Speedrun(
    stages={
        "text": StageShare(share=0.22),
        "audio": StageShare(share=0.20),
        "vision": StageShare(share=0.10),
        "codec": StageShare(share=0.08),
        "omni": StageShare(share=0.12),
        "talker": StageShare(share=0.18),
    },
    evaluation=0.07,
    evaluation_seconds=45.0,
    data="full",
)


def speedrun(size: str) -> Speedrun:
    """How a speedrun of a size spends its minutes. Raises ConfigError for a size that does not exist."""
    return _NANO_SPEEDRUN if model(size).size == "nano" else _SCALED_SPEEDRUN
