"""Fetch a pinned package with its registry's ordinary client, check its hash, and unpack it."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from muomni.data.sources import debian
from muomni.data.sources.download import Progress, digest, download
from muomni.errors import UserError


class SourceError(UserError, RuntimeError):
    """A package cannot be fetched, is not the pinned one, or a tool to read it is missing."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A pinned package of a public registry, with its licence."""

    registry: Literal["debian", "debian-non-free", "pypi", "npm", "url", "hub"]
    name: str
    """In its registry; of a url the address. The hub's are fetched file by file as rows are needed (hub.py)."""
    version: str
    """Of the hub a commit; empty: the one that was the newest when it was first asked for counts from then on."""
    sha256: str
    """Of its archive; empty where its publisher gives none: then that of the first download counts from then on."""
    licence: str
    attribution: str
    gives: str
    """What is taken from it."""
    n_bytes: int = 0
    """Size of its archive; 0: not known before it is fetched."""


def _client(package: Package) -> list[str]:
    if package.registry == "debian":
        return ["apt-get", "download", f"{package.name}={package.version}"]
    if package.registry == "pypi":
        return [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            f"{package.name}=={package.version}",
        ]
    return ["npm", "pack", "-s", f"{package.name}@{package.version}"]


def _commands(package: Package, folder: Path) -> list[list[str]]:
    if package.registry == "debian-non-free":
        return debian.commands(package.name, package.version, folder / "apt")
    return [_client(package)]


def run(command: list[str], *, cwd: Path, what: str) -> bytes:
    """What a registry's client prints. Raises SourceError when it is missing or fails; what: for whose sake it ran."""
    try:
        return subprocess.run(command, cwd=cwd, check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise SourceError(f"{what}: needs {command[0]}, which is not installed here.") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or b"no message").decode("utf-8", "replace").strip()
        raise SourceError(f"{what}: {command[0]} failed: {said.splitlines()[-1]}") from None


def _digest(path: Path) -> str:
    return digest(path)


def _folder(package: Package, cache: Path) -> Path:
    own = package.name.rpartition("/")[2] if package.registry == "url" else package.name.replace("/", "_")
    return cache / f"{package.registry}-{own}-{package.version}".replace(":", "_")


def is_fetched(package: Package, cache: Path) -> bool:
    """Whether a package lies unpacked in the cache; of the hub's never, since more of it may be needed."""
    return (_folder(package, cache) / "files").is_dir()


def fetch(package: Package, cache: Path, *, progress: Progress = lambda done, total: None) -> Path:
    """Download a package into cache (once) and unpack it.

    Returns the folder of its files. Raises SourceError when the client is missing or fails, or when
    the archive's SHA-256 is not the pinned one.
    """
    folder = _folder(package, cache)
    downloads, files = folder / "archive", folder / "files"
    if package.registry == "url":
        if not files.is_dir():
            _unpack(_downloaded(package, downloads, progress), files)
        return files
    archive = next((p for p in downloads.glob("*") if _digest(p) == package.sha256), None)
    if archive is None:
        shutil.rmtree(folder, ignore_errors=True)
        downloads.mkdir(parents=True)
        for command in _commands(package, folder):
            run(command, cwd=downloads, what=f"{package.name} {package.version}")
        archive = next(iter(downloads.iterdir()))
        if _digest(archive) != package.sha256:
            raise SourceError(
                f"{package.name} {package.version}: SHA-256 {_digest(archive)}, expected {package.sha256}; "
                "the registry serves another file than the one this set was built from."
            )
    if not files.exists():
        _unpack(archive, files)
    return files


def _downloaded(package: Package, downloads: Path, progress: Progress) -> Path:
    """A url's archive, whole and the right one. Raises SourceError for another one, which is then deleted."""
    archive = downloads / package.name.rpartition("/")[2]
    if not archive.is_file():
        download(package.name, archive, progress=progress)
    known = downloads / "sha256"
    expected = package.sha256 or (known.read_text() if known.is_file() else "")
    found = _digest(archive)
    if expected and found != expected:
        archive.unlink()
        raise SourceError(f"{package.name}: SHA-256 {found}, expected {expected}; fetch it again.")
    known.write_text(found)
    return archive


def _unpack(archive: Path, files: Path) -> None:
    partial = files.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if archive.suffix == ".deb":
        if shutil.which("dpkg") is None:
            raise SourceError(f"{archive.name}: needs dpkg, which is not installed here.")
        subprocess.run(["dpkg", "-x", str(archive), str(partial)], check=True)
    elif archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as bundle:
            for name in bundle.namelist():
                if not (partial / name).resolve().is_relative_to(partial.resolve()):
                    raise SourceError(
                        f"{archive.name}: {name!r} leads out of the archive; it is not unpacked."
                    )
            bundle.extractall(partial)
    else:
        try:
            with tarfile.open(archive) as bundle:
                bundle.extractall(partial, filter="data")
        except tarfile.TarError as error:
            raise SourceError(f"{archive.name}: {error}; it is not unpacked.") from None
    partial.rename(files)


def build_tool(module: str, *, folder: Path | None = None) -> ModuleType:
    """A Python package needed only to rebuild the set, from folder (a pinned wheel's files) or as installed.

    Raises SourceError naming the extra to install, or when the package was already imported from elsewhere.
    """
    if folder is not None:
        folder = folder.resolve()
        sys.path.insert(0, str(folder))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SourceError(
            f"needs the package {error.name}; pip install 'muomni[data]' ('muomni[hub]' for Parquet)."
        ) from None
    finally:
        if folder is not None:
            sys.path.remove(str(folder))
    if folder is not None and not Path(str(found.__file__)).resolve().is_relative_to(folder):
        raise SourceError(
            f"{module}: imported from {found.__file__}, not from the pinned package in {folder}."
        )
    return found
