"""Held-out samples at every evaluation: RUN/<stage>/samples/step-00000500/, the same few items each time.

What a stage writes is in stages/written_samples.py and stages/spoken_samples.py; here is what they share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from muomni import files
from muomni.config import MelConfig, ModelConfig
from muomni.data.audio import denormalise
from muomni.data.media import write_wav
from muomni.models.griffin_lim import GriffinLim
from muomni.models.thinker import Thinker
from muomni.plot import png
from muomni.tokens import EOS
from muomni.train.stage import Stage

N_ITEMS = 4
"""Items of one kind, at most."""
LOUDEST = 4.0
"""Natural logarithm of the mel power that is drawn brightest; the spectrogram's floor is darkest."""

Item = TypeVar("Item")


@torch.no_grad()
def write(stage: Stage, model: nn.Module, directory: Path, *, step: int) -> dict[str, float]:
    """Write a stage's samples of validation items; the model is in eval mode.

    directory: the stage's, RUN/<stage>. Returns the stage's numbers about them as `sample/<name>`, for the log.
    """
    folder = directory / "samples" / f"step-{step:08d}"
    return {f"sample/{name}": v for name, v in stage.samples(model, "validation", folder).items()}


def spread(items: Sequence[Item], n: int = N_ITEMS) -> list[Item]:
    """At most n items, evenly spaced: no choosing of good examples."""
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


@torch.no_grad()
def greedy(
    thinker: Thinker, prompts: Sequence[tuple[torch.Tensor, torch.Tensor]], *, max_new: int
) -> list[list[int]]:
    """The likeliest tokens behind each prompt, without the EOS that ends them; at most max_new.

    prompts: embeddings (n, d_model) and positions (n, 3) int64 of one document each, text at the end.
    """
    lengths = [len(embeds) for embeds, _ in prompts]
    device = prompts[0][0].device
    cache = thinker.new_cache(len(prompts), max(lengths) + max_new)
    embeds, positions = (
        nn.utils.rnn.pad_sequence(list(p), batch_first=True) for p in zip(*prompts, strict=True)
    )
    hidden = thinker.step(embeds, positions, cache)
    cache.truncate(lengths)
    last = torch.tensor(lengths, device=device) - 1
    rows = torch.arange(len(prompts), device=device)
    state, place = hidden[rows, last], positions[rows, last] + 1
    tokens = torch.full((len(prompts), max_new), EOS, device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for i in range(max_new):
        chosen = thinker.logits(state).argmax(-1)
        ended |= chosen == EOS
        if bool(ended.all()):
            break
        tokens[:, i] = torch.where(ended, EOS, chosen)
        if i + 1 < max_new:
            state = thinker.step(thinker.embed(chosen)[:, None], (place + i)[:, None], cache)[:, 0]
    return [[t for t in row if t != EOS] for row in tokens.tolist()]


def write_lines(path: Path, blocks: Sequence[Sequence[tuple[str, str]]]) -> None:
    """Blocks of (name, text) as a text file, one line each, the blocks apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = max(len(name) for block in blocks for name, _ in block) + 2
    lines = [
        "".join(f"{name + ':':<{width}}{' | '.join(text.splitlines())}\n" for name, text in block)
        for block in blocks
    ]
    files.replace(path, "\n".join(lines))


def write_spectrograms(path: Path, mels: Sequence[torch.Tensor], mel: MelConfig) -> None:
    """Normalised log-mels (n_frames, n_mels) below one another as one PNG: time to the right, frequency upwards."""
    low = math.log(mel.floor)
    width = max(len(m) for m in mels)
    rows: list[list[float]] = []
    for log_mel in mels:
        image = np.full((mel.n_mels, width), low, np.float32)
        image[:, : len(log_mel)] = denormalise(log_mel, mel).float().cpu().numpy().T[::-1]
        rows += [[LOUDEST] * width] * bool(rows) + image.tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, png(rows, low=low, high=LOUDEST))


def write_speech(path: Path, log_mel: torch.Tensor, config: ModelConfig) -> None:
    """A normalised log-mel (n_frames, n_mels) as WAV, by Griffin-Lim on the CPU."""
    vocoder = GriffinLim(config.mel, config.griffin_lim, block=config.codec.factor)
    path.parent.mkdir(parents=True, exist_ok=True)
    # An untrained model may be louder than a float32 exponential can hold.
    power = denormalise(log_mel, config.mel).float().cpu().clamp(max=LOUDEST)
    write_wav(path, vocoder(power).numpy(), config.mel.sample_rate)
