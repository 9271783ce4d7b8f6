"""What a judge is made of: pinned packages whose files are unpacked and never run, and modules of the extra."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from muomni.data.sources.fetch import Package
from muomni.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A public model that judges speech."""

    about: str
    """Model, licence and how it is run."""
    packages: tuple[Package, ...]
    """Where its weights come from."""
    needs: tuple[str, ...] = ()
    """Modules of the extra `eval` that run it."""

    def check_installed(self) -> None:
        """Raises UserError naming the extra when a module is missing."""
        for module in self.needs:
            if importlib.util.find_spec(module) is None:
                raise UserError(
                    f"eval speech: needs {module}, which is not installed; pip install 'muomni[eval]'."
                )


def pypi(name: str, version: str, sha256: str, n_bytes: int, licence: str, by: str, gives: str) -> Package:
    """A wheel of the Python Package Index."""
    return Package(
        registry="pypi", name=name, version=version, sha256=sha256, n_bytes=n_bytes, licence=licence, attribution=by,
        gives=gives,
    )  # fmt: skip


def as_clip(waveform: object) -> None:
    """Raises ValueError unless it is a mono clip with at least one sample."""
    shape = getattr(waveform, "shape", None)
    if shape is None or len(shape) != 1 or not shape[0]:
        raise ValueError(f"waveform: expected (n_samples,) with n_samples > 0, got {shape}.")
