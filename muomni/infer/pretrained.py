"""A finished model as one directory: written whole or not at all, verified before it is read, no code and no pickle.

    DIR/{model.safetensors, config.json, tokenizer.json, README.md, MANIFEST.json}

A folder `onnx` beside them is not looked at.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from muomni import files
from muomni.config import ModelConfig
from muomni.data.text import Tokenizer
from muomni.infer.history import Trained, from_plain, to_plain, with_licences
from muomni.infer.loading import OPTIONAL, Loaded, fill, load_tokenizer
from muomni.infer.model_card import Card, card_text
from muomni.models.omni import OmniModel
from muomni.models.vocoder import Vocoder
from muomni.models.weights import (
    MANIFEST,
    CheckpointError,
    load_weights,
    save_weights,
    verify_manifest,
    write_manifest,
)
from muomni.settings import ConfigError, from_dict, to_dict

FORMAT = 1
WEIGHTS, CONFIG, TOKENIZER, README, ONNX = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "README.md",
    "onnx",
)
FILES: tuple[str, ...] = (WEIGHTS, CONFIG, TOKENIZER, README, MANIFEST)
REMEDY = "save it or download it again"

Stored = Literal["float32", "float16"]
STORED: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A model and what goes into its directory with it."""

    model: OmniModel
    tokenizer: Tokenizer
    history: tuple[Trained, ...]


def is_pretrained(directory: Path) -> bool:
    """Whether a directory is, or was meant to be, of this format and not a run's."""
    return (directory / CONFIG).is_file() or (directory / WEIGHTS).is_file()


def save(finished: Finished, directory: Path, *, dtype: Stored = "float32", card: Card | None = None) -> Path:
    """Write a model's directory aside, sync it, and put it in its place.

    A model's directory that is there is replaced. dtype: of the weights in the file; they are loaded as float32. A
    tensor that float16 cannot hold stays float32.
    Raises CheckpointError for another dtype, and for a directory that holds anything else.
    """
    if dtype not in STORED:
        raise CheckpointError(f"dtype: expected {' or '.join(STORED)}, got {dtype!r}.")
    directory = Path(os.path.abspath(directory))
    _check_place(directory)
    history = with_licences(finished.history)
    config = {
        "format": FORMAT, "vocoder": isinstance(finished.model.vocoder, Vocoder), "dtype": dtype,
        "model": to_dict(finished.model.config), "stages": to_plain(history),
    }  # fmt: skip
    text = card_text(finished.model.config, history, card or Card(), vocoder=config["vocoder"], dtype=dtype)
    directory.parent.mkdir(parents=True, exist_ok=True)
    new, old = (directory.with_name(f".{directory.name}.{what}-{os.getpid()}") for what in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        state = {name: _stored(value, STORED[dtype]) for name, value in finished.model.state_dict().items()}
        save_weights(state, new / WEIGHTS)
        (new / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        finished.tokenizer.save(new / TOKENIZER)
        (new / README).write_text(text, encoding="utf-8")
        write_manifest(new)
        for file in new.iterdir():
            files.sync(file)
        files.sync(new)
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
        files.sync(directory.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return directory


def load(directory: Path) -> Loaded:
    """The model of such a directory, every file of it checked against its SHA-256 first.

    Raises CheckpointError naming the file that is missing, damaged or not of this version; TokenizerError.
    """
    verify_manifest(directory, remedy=REMEDY)
    for name in FILES:
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory / name}: missing; {REMEDY}.")
    config, vocoder, history = _read_config(directory / CONFIG)
    tokenizer = load_tokenizer(directory, config)
    model = OmniModel(config, vocoder=vocoder)
    expected = model.state_dict()
    state = {
        name: value.to(expected[name].dtype) if name in expected else value
        for name, value in load_weights(directory / WEIGHTS).items()
    }
    fill(model, state, where=directory / WEIGHTS, remedy=REMEDY)
    notes = () if vocoder else (f"stage vocoder is not trained: {OPTIONAL['vocoder']}.",)
    return Loaded(model.eval(), tokenizer, notes, history)


def _read_config(path: Path) -> tuple[ModelConfig, bool, tuple[Trained, ...]]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: is of format {values['format']!r}, expected {FORMAT}; install the muomni that wrote it."
            )
        return from_dict(ModelConfig, values["model"]), bool(values["vocoder"]), from_plain(values["stages"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (
            str(error).rstrip(".") if isinstance(error, ConfigError) else "is not a model's of this version"
        )
        raise CheckpointError(f"{path}: {reason}; {REMEDY}.") from None


def _stored(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not value.is_floating_point() or dtype == torch.float32:
        return value
    half = value.to(dtype)
    return half if bool((half.isfinite() == value.isfinite()).all()) else value


def _check_place(directory: Path) -> None:
    """Raises CheckpointError where a save would delete what is not a model's."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: is a file; choose another place for the model.")
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    if others := sorted(names - {*FILES, ONNX}):
        raise CheckpointError(
            f"{directory}: holds {others[0]}, which is no file of a model; choose another place for it."
        )
