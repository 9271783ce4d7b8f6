"""Debian's archive through apt with lists of its own: what this machine's apt may not be set up for, as non-free."""

from __future__ import annotations

from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
"""Of the package debian-archive-keyring: apt checks the archive's signature, so the mirror need not be trusted."""


def options(folder: Path, *, component: str, descriptions: bool = False) -> list[str]:
    """apt-get's options for a component of the archive, its state kept under folder, which is made.

    descriptions: fetch the packages' descriptions rather than the list of packages.
    """
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {MIRROR} {SUITE} {component}\n", encoding="utf-8")
    # Absolute: apt takes other paths as relative to its own folders, and runs elsewhere.
    settings = {
        "Dir::Etc::SourceList": sources.resolve(),
        "Dir::Etc::SourceParts": "-",
        "Dir::State::lists": (folder / "lists").resolve(),
        "Dir::Cache": (folder / "cache").resolve(),
        "Acquire::Languages": "en" if descriptions else "none",
        "Acquire::IndexTargets::deb::Packages::DefaultEnabled": "false" if descriptions else "true",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def commands(name: str, version: str, folder: Path) -> list[list[str]]:
    """What downloads a package of non-free into the working folder."""
    own = options(folder, component="non-free")
    return [["apt-get", *own, "update"], ["apt-get", *own, "download", f"{name}={version}"]]
