"""An untrained run on disk, small enough to talk to in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

# How long an example takes is the machine's business.
settings.register_profile("muomni", deadline=None)
settings.load_profile("muomni")

if TYPE_CHECKING:
    from muomni.config import ModelConfig
    from muomni.infer.session import Session
    from muomni.models.omni import OmniModel

SENTENCES = [
    "the cat sat on the mat",
    "who is it, then? naïve café ☕ 日本",
    "press one for yes and two for no",
    "hello world, say it again",
] * 3


def _small_config(**changes: Any) -> ModelConfig:
    """Every part at its smallest."""
    # Imported here: the tests that need no model load no torch.
    from muomni.config import (
        AudioConfig,
        CodecConfig,
        GriffinLimConfig,
        ModelConfig,
        TalkerConfig,
        ThinkerConfig,
        VisionConfig,
        VocoderConfig,
    )

    values: dict = {
        "size": "debug",
        "thinker": ThinkerConfig(
            vocab_size=320, d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128
        ),
        "vision": VisionConfig(image_size=32, d_model=64, n_layers=1, n_heads=2, d_ff=64, embed_dim=64),
        "audio": AudioConfig(d_model=64, n_layers=1, n_heads=2, d_ff=64),
        "codec": CodecConfig(d_model=64, n_layers=1, latent_dim=16, codebook_size=64),
        "talker": TalkerConfig(
            d_model=64,
            n_layers=1,
            n_heads=2,
            n_kv_heads=1,
            head_dim=32,
            d_ff=64,
            depth_d_model=64,
            depth_d_ff=64,
            delay=1,
        ),
        "vocoder": VocoderConfig(d_model=64, n_layers=1, d_ff=64, d_discriminator=4),
        "griffin_lim": GriffinLimConfig(n_iters=2, lookahead=2),
        "max_seq_len": 128,
    }
    return ModelConfig(**(values | changes))


def _write_run(root: Path, *, seed: int = 0, **changes: Any) -> OmniModel:
    """Untrained stages in the layout training leaves behind; gives the model they make up."""
    import torch

    from muomni.config import STAGES, RunConfig, TrainConfig
    from muomni.data.text import train_tokenizer
    from muomni.infer.loading import PARTS, find_stage
    from muomni.models.omni import OmniModel
    from muomni.models.vision import ContrastModel
    from muomni.models.weights import save_weights, write_manifest
    from muomni.settings import to_dict

    config = _small_config(**changes)
    torch.manual_seed(seed)
    model = OmniModel(config).eval()
    with torch.no_grad():
        model.codec.quantizer.codebooks.normal_()
    train_tokenizer(SENTENCES, config.thinker.vocab_size).save(root / "tokenizer.json")
    contrast = ContrastModel(config.vision, vocab_size=config.thinker.vocab_size)
    state = model.state_dict()
    digests: dict[str, str] = {}
    for stage in STAGES:
        names = PARTS.get(stage, {"thinker.": "thinker."})
        own = {
            saved + name.removeprefix(part): tensor
            for saved, part in names.items()
            for name, tensor in state.items()
            if name.startswith(part)
        }
        if stage == "vision":
            own |= {k: v for k, v in contrast.state_dict().items() if not k.startswith("vision.")}
        directory = root / stage / "checkpoints" / "step-00000001"
        directory.mkdir(parents=True)
        save_weights(own, directory / "weights.safetensors")
        run = RunConfig(stage=stage, model=config, train=TrainConfig(steps=1))
        record = {"config": to_dict(run), "step": 1, "complete": True, "parents": dict(digests)}
        (directory / "run.json").write_text(json.dumps(record))
        write_manifest(directory)
        digests[stage] = find_stage(root, stage).digest
    return model


@pytest.fixture(scope="session")
def small_config() -> Callable[..., ModelConfig]:
    """small_config(**changes): the sizes of the run below."""
    return _small_config


@pytest.fixture(scope="session")
def write_run() -> Callable[..., OmniModel]:
    """write_run(root, seed=0, **changes of the model's config)."""
    return _write_run


@pytest.fixture(scope="session")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; not to be modified."""
    root = tmp_path_factory.mktemp("run with spaces")
    _write_run(root)
    return root


@pytest.fixture
def session(run_root: Path) -> Session:
    """A fresh conversation with it."""
    from muomni.infer.session import load

    return load(run_root, device="cpu")


@pytest.fixture
def all_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole embedded set, also where another test's `small_data` is in force."""
    from muomni.data import embedded

    monkeypatch.setattr(embedded.SET, "items", partial(embedded.Embedded.items, embedded.SET))
