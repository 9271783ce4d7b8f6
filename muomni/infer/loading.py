"""A run's directory -> OmniModel: the newest complete checkpoint of every stage, verified, of one size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from muomni.config import DEPENDS, STAGES, ModelConfig
from muomni.data.text import Tokenizer
from muomni.infer.history import Trained, of_record
from muomni.models.omni import OmniModel
from muomni.models.weights import MANIFEST, CheckpointError, load_weights, newest_complete
from muomni.settings import ConfigError, from_dict, shaping, to_dict

PARTS: dict[str, dict[str, str]] = {
    "audio": {"audio.": "audio.", "ctc_head.": "ctc_head."},
    "vision": {"vision.": "vision."},
    "codec": {"codec.": "codec."},
    "vocoder": {"vocoder.": "vocoder."},
    "omni": {
        "thinker.": "thinker.",
        "vision_projector.": "vision_projector.",
        "audio_projector.": "audio_projector.",
    },
    "talker": {"talker.": "talker."},
}
"""Which saved names of a stage become which of the OmniModel; omni's Thinker replaces text's."""


@dataclass(frozen=True, kw_only=True)
class StageFiles:
    """The checkpoint of one stage that is used."""

    stage: str
    path: Path
    """Its directory, verified against its manifest."""
    record: dict[str, Any]
    """Its run.json."""
    config: ModelConfig
    notes: tuple[str, ...]
    """Newer checkpoints that were passed over, and why."""

    def weights(self, names: dict[str, str]) -> dict[str, torch.Tensor]:
        """Tensors whose name starts with a key of `names`, the start replaced by its value."""
        tensors = load_weights(self.path / "weights.safetensors")
        return {
            new + name.removeprefix(old): tensor
            for name, tensor in tensors.items()
            for old, new in names.items()
            if name.startswith(old)
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: what a later stage names as its parent."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()


def find_stage(root: Path, stage: str) -> StageFiles:
    """The newest complete checkpoint of a stage.

    Raises CheckpointError when there is none, saying why and which command trains it.
    """
    remedy = f"run `muomni train --stage {stage} --run {root}` first."
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such directory; {remedy}")
    skipped: list[str] = []
    path = newest_complete(root / stage, skipped=skipped)
    if path is None and skipped:
        raise CheckpointError(f"stage {stage} has no usable checkpoint: {skipped[0].rstrip('.')}; {remedy}")
    if path is None:
        raise CheckpointError(f"{root}: stage {stage} is not trained; {remedy}")
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        config = from_dict(ModelConfig, record["config"]["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        # A manifest vouches for the bytes, not for the version of muomni that wrote them.
        reason = str(error) if isinstance(error, ConfigError) else "its run.json is not of this version"
        raise CheckpointError(f"{path}: {reason.rstrip('.')}; {remedy}") from None
    return StageFiles(stage=stage, path=path, record=record, config=config, notes=tuple(skipped))


OPTIONAL: dict[str, str] = {"vocoder": "the waveform is made by Griffin-Lim, which needs no training"}
"""Stages without which there is a model all the same, and what then does their work."""


def find_stages(root: Path) -> dict[str, StageFiles]:
    """The checkpoints of all stages, of one size and made from one another; of OPTIONAL ones those there are.

    Raises CheckpointError for a missing or damaged stage, for two sizes in one run, and for a stage trained
    on another state of an earlier one: it would load and answer nonsense.
    """
    found = {
        stage: find_stage(root, stage)
        for stage in STAGES if stage not in OPTIONAL or (root / stage / "checkpoints").is_dir()
    }  # fmt: skip
    first = found[STAGES[0]]
    for stage, files in found.items():
        if difference := _difference(files.config, first.config, keys=DEPENDS[stage]):
            raise CheckpointError(
                f"{files.path}: is of another size ({files.config.size}, {difference}) than stage {first.stage} "
                f"({first.config.size}); train all stages of {root} at one size."
            )
    for stage, files in found.items():
        for parent, digest in (files.record.get("parents") or {}).items():
            if parent in found and digest != found[parent].digest:
                raise CheckpointError(
                    f"{files.path}: was trained on another stage {parent} than the one that is there; "
                    f"run `muomni train --stage {stage} --run {root}` again."
                )
    return found


def load_tokenizer(root: Path, config: ModelConfig) -> Tokenizer:
    """The run's tokenizer. Raises TokenizerError, or CheckpointError when it is not the model's."""
    path = root / "tokenizer.json"
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > config.thinker.vocab_size:
        raise CheckpointError(
            f"{path}: {tokenizer.vocab_size} entries, the model has {config.thinker.vocab_size}; "
            "put back the tokenizer the run was trained with."
        )
    return tokenizer


class Loaded(NamedTuple):
    """A model that is ready, and what is known about it."""

    model: OmniModel
    """On the CPU, in eval mode."""
    tokenizer: Tokenizer
    notes: tuple[str, ...]
    """Checkpoints passed over, and stages that are not trained."""
    history: tuple[Trained, ...]


def load_model(root: Path) -> Loaded:
    """The OmniModel of a run's stages.

    Raises CheckpointError, TokenizerError.
    """
    stages = find_stages(root)
    config = stages["text"].config
    tokenizer = load_tokenizer(root, config)
    model = OmniModel(config, vocoder="vocoder" in stages)
    state: dict[str, torch.Tensor] = {}
    for stage, names in PARTS.items():
        if stage in stages:
            state |= stages[stage].weights(names)
    fill(model, state, where=root, remedy="train this run again with this version")
    notes = [note for files in stages.values() for note in files.notes]
    notes += [
        f"stage {stage} is not trained: {instead}; run `muomni train --stage {stage} --run {root}`."
        for stage, instead in OPTIONAL.items() if stage not in stages
    ]  # fmt: skip
    history = tuple(of_record(stage, files.record) for stage, files in stages.items())
    return Loaded(model.eval(), tokenizer, tuple(notes), history)


def fill(model: OmniModel, state: dict[str, torch.Tensor], *, where: Path, remedy: str) -> None:
    """Load a whole state. Raises CheckpointError for a weight that is missing, too many or of another shape."""
    expected = model.state_dict()
    for name in sorted(set(expected) ^ set(state)):
        what = "is missing" if name in expected else "is not part of this model"
        raise CheckpointError(f"{where}: weight {name} {what}; {remedy}.")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{where}: weight {name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}; {remedy}."
            )
    model.load_state_dict(state)


def _shaping(config: ModelConfig) -> dict[str, Any]:
    return shaping(to_dict(config), ModelConfig)


def _difference(a: ModelConfig, b: ModelConfig, *, keys: Sequence[str]) -> str:
    """The first setting of these groups that two models do not share; empty for none."""
    ours, other = _shaping(a), _shaping(b)
    # What the sizes differ in says more than their names.
    for key in sorted(keys, key=lambda key: key == "size"):
        value, theirs = ours[key], other[key]
        if value == theirs:
            continue
        if isinstance(value, dict):
            name = next(name for name in value if value[name] != theirs[name])
            return f"{key}.{name} is {value[name]} there, {theirs[name]} here"
        return "another name" if key == "size" else f"{key} is {value} there, {theirs} here"
    return ""
