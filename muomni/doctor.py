"""What this machine offers: versions, devices, the C++ extension, and which backend each op would take."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in (
        "muomni",
        "torch",
        "triton",
        "numpy",
        "tokenizers",
        "safetensors",
        "soundfile",
        "soxr",
        "pillow",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_name() -> str:
    """The device training would use, in words."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def commit() -> str:
    """The short commit of the checkout this package lies in, with + when a tracked file differs.

    Outside a checkout MUOMNI_COMMIT, or else the version after a v.
    """
    root = Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        try:
            short, changed = (
                subprocess.run(
                    ["git", *words], cwd=root, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                ).stdout.strip()
                for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError):
            pass
        else:
            return short + ("+" if changed else "")
    return os.environ.get("MUOMNI_COMMIT") or f"v{versions()['muomni']}"


def report() -> Iterator[str]:
    """Lines of the doctor's report."""
    import muomni_kernels

    for name, version in versions().items():
        yield f"{name:<12} {version}"
    yield f"{'device':<12} {device_name()}"
    yield ""
    yield f"{'op':<22} {'backend':<12} {'runs here':<10} reason against"
    for op, backend, available, reason in muomni_kernels.doctor_rows():
        yield f"{op:<22} {backend:<12} {'yes' if available else 'no':<10} {reason or ''}".rstrip()
    yield ""
    yield f"{'op':<22} which backend runs, and why"
    for op, choice in muomni_kernels.choice_rows():
        yield f"{op:<22} {choice}"
