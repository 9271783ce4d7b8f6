"""A finished model as one directory: read whole or not at all, verified before that, no code and no pickle.

    DIR/{model.safetensors, config.json, tokenizer.json, README.md, MANIFEST.json}

A folder `onnx` beside them is not looked at, nor is what is hidden: DIR may be a clone. A save writes new files into
DIR/.saving-X, then moves them one by one to their places and the old ones to DIR/.saving-X-old, the manifest last.
- An error on the way: all moves are undone.
- A kill before the first of these moves leaves the old model, after the last the new one. Between them DIR holds files
  of both, which no manifest vouches for: `load` refuses it, and the old files and the new ones are all still there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
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

FORMAT = 3
WEIGHTS, CONFIG, TOKENIZER, README, ONNX = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "README.md",
    "onnx",
)
FILES: tuple[str, ...] = (WEIGHTS, CONFIG, TOKENIZER, README, MANIFEST)
ONNX_PARTS = ("vision", "audio", "codec_decoder", "vocoder")
"""What an export writes into `onnx`, each as NAME.onnx: made from the weights, so it goes with them."""
SAVING = ".saving-"
"""How the folders of a save that goes on, or was killed, begin."""
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
    begun = any((directory / name).is_file() for name in (CONFIG, WEIGHTS))
    return begun or any(directory.glob(f"{SAVING}*"))


def save(finished: Finished, directory: Path, *, dtype: Stored = "float32", card: Card | None = None) -> Path:
    """Write a model's files aside, sync them, and move them to their places: see above for what a kill leaves.

    Those of a model that is there are replaced, and parts exported from it to `onnx` removed; hidden files and all
    else in `onnx` stay. dtype: of the weights in the file; they are loaded as float32. A tensor that float16 cannot
    hold stays float32.
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
    # What a link points to may not be there yet.
    place = Path(os.path.realpath(directory))
    is_new = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    try:
        files.sync(place.parent)
        with tempfile.TemporaryDirectory(prefix=SAVING, dir=place, ignore_cleanup_errors=True) as folder:
            new = Path(folder)
            state = {
                name: _stored(value, STORED[dtype]) for name, value in finished.model.state_dict().items()
            }
            save_weights(state, new / WEIGHTS)
            (new / CONFIG).write_text(
                json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            finished.tokenizer.save(new / TOKENIZER)
            (new / README).write_text(text, encoding="utf-8")
            write_manifest(new)
            for file in new.iterdir():
                files.sync(file)
            files.sync(new)
            _exchange(new, place)
    finally:
        if is_new:
            # Of a save that failed it is empty.
            with contextlib.suppress(OSError):
                place.rmdir()
    return directory


def _exchange(new: Path, place: Path) -> None:
    """Move the files of `new` to `place`, and out of their way what is there; after an error all is as before."""
    old = new.with_name(f"{new.name}-old")
    old.mkdir()
    with contextlib.ExitStack() as undo:
        undo.callback(old.rmdir)
        for name in (*(f"{ONNX}/{part}.onnx" for part in ONNX_PARTS), *FILES):
            file = place / name
            undo.callback(_put_back, old / file.name, file, there=os.path.lexists(file))
            if os.path.lexists(file):
                os.rename(file, old / file.name)
            if name in FILES:
                os.rename(new / name, file)
        files.sync(place)
        undo.pop_all()
    shutil.rmtree(old, ignore_errors=True)


def _put_back(kept: Path, file: Path, *, there: bool) -> None:
    if os.path.lexists(kept):
        os.replace(kept, file)
    elif not there:
        file.unlink(missing_ok=True)


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
    """Raises CheckpointError where a save would replace what is not a model's, or write what `load` then refuses."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: is a file; choose another place for the model.")
    for path in sorted(directory.iterdir()):
        is_own = path.name == ONNX or (path.name in FILES and (path.is_symlink() or not path.is_dir()))
        if not (is_own or path.name.startswith(".")):
            raise CheckpointError(
                f"{directory}: holds {path.name}, which is no file of a model; choose another place for it."
            )
