"""Finished models that come with the package, called by their name."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[1] / "shipped"
"""One directory a model, as `Session.save_pretrained` writes it; docs/quality.md says how each was trained."""


def names() -> tuple[str, ...]:
    """The models there are."""
    return tuple(sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())) if SHIPPED.is_dir() else ()


def find(path_or_name: Path | str) -> Path:
    """A directory as it is given; where there is none, that of the shipped model of this name, if it is one."""
    path = Path(path_or_name)
    return SHIPPED / str(path) if not path.exists() and str(path) in names() else path
