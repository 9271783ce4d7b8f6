"""Weights on disk: safetensors, a SHA-256 manifest written last, and the newest complete checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from muomni.errors import UserError

MANIFEST = "MANIFEST.json"


class CheckpointError(UserError, RuntimeError):
    """Weights that are missing, damaged or of another model. One line: where, what, the remedy."""


def save_weights(module_state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors by name as safetensors. Not atomic: train/checkpoint.py writes aside and renames.

    Tensors that share memory are written once each.
    """
    save_file({k: v.detach().to("cpu", copy=True).contiguous() for k, v in module_state.items()}, str(path))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors by name, on the CPU.

    Raises CheckpointError when the file is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; train the stage first or point to another run.")
    try:
        return load_file(str(path), device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not readable as safetensors ({error}); delete it and train again."
        ) from error


def write_manifest(directory: Path) -> Path:
    """Hash every file of a directory into its MANIFEST.json, which marks it as complete: write it last."""
    files = {p.name: _entry(p) for p in sorted(directory.iterdir()) if p.is_file() and p.name != MANIFEST}
    path = directory / MANIFEST
    path.write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n")
    return path


def verify_manifest(directory: Path, *, remedy: str | None = None) -> None:
    """Check every file of a directory against its manifest; hidden ones are not looked at.

    remedy: what to do about damage; by default what helps with a checkpoint.
    Raises CheckpointError when the manifest is missing or unreadable, or a file is missing, of another
    size, changed, or not listed: half a checkpoint would load without any symptom.
    """
    remedy = remedy or f"delete {directory}, an older one is used"
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{directory}: incomplete, {MANIFEST} is missing; {remedy}.")
    try:
        listed = json.loads(path.read_text())["files"]
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not readable; {remedy}.") from error
    there = {p.name for p in directory.iterdir() if p.is_file() and not p.name.startswith(".")} - {MANIFEST}
    for name in sorted(there ^ set(expected)):
        what = "not in the manifest" if name in there else "missing"
        raise CheckpointError(f"{directory / name}: {what}; {remedy}.")
    for name, (size, digest) in expected.items():
        found = (directory / name).stat().st_size
        if found != size:
            raise CheckpointError(f"{directory / name}: {found} bytes, expected {size}; {remedy}.")
        if _sha256(directory / name) != digest:
            raise CheckpointError(f"{directory / name}: damaged (SHA-256 differs); {remedy}.")


def newest_complete(stage_dir: Path, *, skipped: list[str] | None = None) -> Path | None:
    """The newest checkpoint directory STAGE/checkpoints/step-* that passes verify_manifest, or None.

    skipped: receives one line for each newer checkpoint that was passed over, newest first.
    """
    for path in sorted(stage_dir.glob("checkpoints/step-*"), key=_step, reverse=True):
        try:
            verify_manifest(path)
        except CheckpointError as error:
            if skipped is not None:
                skipped.append(str(error))
        else:
            return path
    return None


def _step(path: Path) -> int:
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdigit() else -1


def _entry(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
