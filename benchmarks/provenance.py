"""What a result depends on: device, versions, commit, command, date."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The short commit, with + when a tracked file differs.

    Outside a checkout, as on a lent machine, MUOMNI_COMMIT, or else a hash of the kernels and benchmarks.
    """
    try:
        short = _git("rev-parse", "--short", "HEAD")
        return short + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    if os.environ.get("MUOMNI_COMMIT"):
        return os.environ["MUOMNI_COMMIT"]
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "kernels").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]):
        digest.update(path.read_bytes())
    return f"tree-{digest.hexdigest()[:8]}"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=ROOT,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ).stdout.strip()


def version(package: str) -> str:
    """Its version, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def device_name(device: str) -> str:
    """The device in words; "cpu" stands for the processor. Loads torch for a CUDA device."""
    if device == "cpu":
        return f"CPU {platform.machine()}, {os.cpu_count()} cores"
    import torch

    return torch.cuda.get_device_name(0)


def capability(device: str) -> str:
    """The dispatch table's key of a device."""
    if device == "cpu":
        return "cpu"
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    return f"sm_{major}{minor}"


def describe(device: str, command: str | None = None) -> dict[str, str]:
    """The columns every row shares."""
    return {
        "device": device_name(device),
        "capability": capability(device),
        "python": platform.python_version(),
        "torch": version("torch"),
        "triton": version("triton"),
        "commit": commit(),
        "command": command or " ".join(sys.orig_argv[1:]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def slug(text: str) -> str:
    """Text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.+]+", "-", text).strip("-").lower()
