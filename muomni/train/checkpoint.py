"""Atomic checkpoints of a run: written aside, fsynced, hashed, renamed; the newest complete one is loaded.

    ROOT/<stage>/checkpoints/step-00000500/{weights.safetensors, optimizer.safetensors, run.json, MANIFEST.json}

A kill at any moment leaves either the whole new checkpoint or none of it, and always the one before.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from muomni import files
from muomni.models.weights import CheckpointError, load_weights, newest_complete, save_weights, write_manifest

ASIDE = ".writing-"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a resume needs."""

    weights: dict[str, torch.Tensor]
    """The stage's own parameters and buffers."""
    optimizer: dict[str, torch.Tensor]
    """Moments and step counts of every phase, as `<phase>/<parameter>/<field>`."""
    record: dict[str, Any]
    """run.json: config, step, position, skipped, versions, device, complete, parents."""


def place(stage_dir: Path, checkpoint: Checkpoint) -> Path:
    """Where a checkpoint comes to lie."""
    return stage_dir / "checkpoints" / f"step-{checkpoint.record['step']:08d}"


def aside(stage_dir: Path, checkpoint: Checkpoint, *, pid: int) -> Path:
    """Where process `pid` writes it first."""
    target = place(stage_dir, checkpoint)
    return target.with_name(f"{ASIDE}{target.name}-{pid}")


def write_tensors(directory: Path, checkpoint: Checkpoint) -> None:
    """Write the tensors' files; they are not synced."""
    save_weights(checkpoint.weights, directory / "weights.safetensors")
    save_weights(checkpoint.optimizer, directory / "optimizer.safetensors")


def save(
    stage_dir: Path,
    checkpoint: Checkpoint,
    *,
    keep: int,
    write: Callable[[Path, Checkpoint], None] = write_tensors,
) -> Path:
    """Write one checkpoint and delete all but the newest `keep`.

    write: puts the tensors' files into a new directory.
    Returns the checkpoint's directory. A complete one of the same step is left as it is: training is deterministic.
    Raises CheckpointError when the disk is full; what was there before is untouched.
    """
    target = place(stage_dir, checkpoint)
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{ASIDE}*"):
        shutil.rmtree(stale, ignore_errors=True)
    if target.exists():
        if newest_complete(stage_dir) == target:
            return target
        shutil.rmtree(target)
    new = aside(stage_dir, checkpoint, pid=os.getpid())
    try:
        new.mkdir()
        write(new, checkpoint)
        write_json(new / "run.json", checkpoint.record)
        for file in new.iterdir():
            files.sync(file)
        write_manifest(new)
        files.sync(new / "MANIFEST.json")
        files.sync(new)
        new.rename(target)
        files.sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        if not _is_full(error):
            raise
        before = newest_complete(stage_dir)
        kept = f"the checkpoint {before.name} is intact" if before else "there was no checkpoint before it"
        raise CheckpointError(
            f"{target}: no space left on the device while saving; {kept}. Free some space and run again."
        ) from error
    older = sorted(path for path in folder.glob("step-*") if path.name < target.name)
    for old in older[: len(older) - keep + 1] if keep <= len(older) else ():
        shutil.rmtree(old, ignore_errors=True)
    return target


def set_damaged_aside(stage_dir: Path) -> list[str]:
    """Rename checkpoints that are newer than the newest complete one, so that none counts as kept.

    They become damaged-step-*. Returns a line about each, newest first: what is wrong with it, and its new name.
    """
    told: list[str] = []
    good = newest_complete(stage_dir, skipped=told)
    folder = stage_dir / "checkpoints"
    bad = sorted((p for p in folder.glob("step-*") if good is None or p.name > good.name), reverse=True)
    for path in bad:
        new = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(new, ignore_errors=True)
        path.rename(new)
    return [f"{line.rstrip('.')}; kept as damaged-{path.name}" for line, path in zip(told, bad, strict=True)]


def load(stage_dir: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a stage, or None."""
    path = newest_complete(stage_dir)
    return None if path is None else read(path)


def read(path: Path) -> Checkpoint:
    """A complete checkpoint's directory, whole tensors, also those that several processes wrote in rows."""
    record = record_of(path)
    if (path / "optimizer.safetensors").is_file():
        return Checkpoint(
            weights=load_weights(path / "weights.safetensors"),
            optimizer=load_weights(path / "optimizer.safetensors"),
            record=record,
        )
    # Here, because it loads all of torch.distributed.
    from muomni.train.sharded import load_whole

    tensors = load_whole(path)
    return Checkpoint(
        weights={name: value for name, value in tensors.items() if "/" not in name},
        optimizer={name: value for name, value in tensors.items() if "/" in name},
        record=record,
    )


def record_of(path: Path) -> dict[str, Any]:
    """The run.json of a complete checkpoint's directory."""
    return json.loads((path / "run.json").read_text())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    files.replace(path, json.dumps(values, indent=1))


def read_record(stage_dir: Path) -> dict[str, Any] | None:
    """A stage's run.json, or None where there is none.

    Raises CheckpointError when it cannot be read as JSON.
    """
    path = stage_dir / "run.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}: not readable ({error}); delete {stage_dir} and train it again."
        ) from error


def newest_step(stage_dir: Path) -> int | None:
    """The step of the newest complete checkpoint, or None."""
    path = newest_complete(stage_dir)
    return None if path is None else record_of(path)["step"]


def manifest_hash(stage_dir: Path) -> str | None:
    """SHA-256 of the newest complete checkpoint's manifest: names the state of a stage."""
    path = newest_complete(stage_dir)
    return None if path is None else hashlib.sha256((path / "MANIFEST.json").read_bytes()).hexdigest()


def _is_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"os error {errno.ENOSPC}" in str(error)
