"""A few real items and very small parts, so that every stage trains in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from muomni.config import STAGES, ModelConfig, OptimConfig, RunConfig, TrainConfig
from muomni.data import embedded
from muomni.recipes import model

ITEMS = {"speech": (10, 4), "questions": (4, 4), "pictures": (24, 12), "conversations": (40, 3)}
"""Training and held-out items of each kind."""


def small_model() -> ModelConfig:
    """Every part at its narrowest."""
    nano = model("nano")
    replace = dataclasses.replace
    return replace(
        nano,
        thinker=replace(nano.thinker, d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128),
        vision=replace(nano.vision, image_size=32, n_layers=1, d_ff=64, text_layers=1, embed_dim=32),
        audio=replace(nano.audio, d_model=64, n_layers=1, n_heads=2, d_ff=128),
        codec=replace(nano.codec, d_model=64, n_layers=1, latent_dim=16, codebook_size=64),
        talker=replace(
            nano.talker, d_model=64, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=64, depth_d_ff=64, delay=1, dropout=0.1
        ),
        vocoder=replace(nano.vocoder, d_model=64, n_layers=1, d_ff=64, d_discriminator=2, adversarial_from=0.0),
    )  # fmt: skip


def small_run(stage: str, *, steps: int = 6, **changes: object) -> RunConfig:
    """A run of a few small steps, dropout and augmentation included."""
    train = TrainConfig(steps=steps, batch_tokens=512, batch_items=6, log_every=1)
    if stage == "talker":
        train = dataclasses.replace(train, batch_tokens=128)
    if stage == "vocoder":
        train = dataclasses.replace(train, batch_tokens=32)
    train = dataclasses.replace(train, **changes)  # type: ignore[arg-type]
    return RunConfig(
        stage=stage, model=small_model(), train=train, optim=OptimConfig(lr=2e-3, warmup_steps=2)
    )


@pytest.fixture(scope="session", name="small_run")
def small_run_fixture() -> Callable[..., RunConfig]:
    """`small_run`, for tests, which cannot import this file."""
    return small_run


@pytest.fixture(scope="session")
def small_data() -> Iterator[None]:
    """The shortest items of each kind of the embedded set, for as long as the tests run."""
    patch = pytest.MonkeyPatch()
    found = {}
    for kind, (n_train, n_held_out) in ITEMS.items():
        chosen = {}
        for split in ("train", "validation", "test"):
            items = embedded.SET.items(kind, split)
            n = n_train if split == "train" else n_held_out
            if kind == "speech":
                items = sorted(items, key=lambda i: (i.n_samples, i.id))
            elif kind == "conversations":
                items = sorted(items, key=lambda i: (-len(i.text), i.id)) if split == "train" else items
            elif kind == "questions":
                # One of each kind in turn.
                items = [q for pair in zip(*[[q for q in items if q.kind == k] for k in ("name", "group")], strict=True)
                         for q in pair]  # fmt: skip
            chosen[split] = items[:n]
        found[kind] = chosen
    patch.setattr(embedded.SET, "items", lambda kind, split: found[kind][split] if kind in found else [])
    yield
    patch.undo()


@pytest.fixture(scope="session")
def trained(small_data: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every stage trained for two steps, in order."""
    from muomni.train.loop import train
    from muomni.train.stages import stage

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("trained") / "run"
    for name in STAGES:
        run = small_run(name, steps=2)
        result = train(stage(run), run, root)
        assert result.held_out and not result.skipped, name
    return root
