"""What a user would build: a source distribution of this tree, and wheels of it with and without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
LEAVE_OUT = shutil.ignore_patterns(".*", "build", "dist", "out", "runs", "*.egg-info", "__pycache__", "*.so")
BUILD_SDIST = "import sys; from setuptools.build_meta import build_sdist; print(build_sdist(sys.argv[1]))"


@dataclass(frozen=True, kw_only=True)
class Distributions:
    """Paths of one build."""

    tree: Path
    """The copy of the sources they were built from."""
    sdist: Path
    wheel: Path
    """Built with this machine's compiler."""
    plain_wheel: Path
    """Built where the compiler fails."""
    plain_log: str


def _run(command: list[str], cwd: Path, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_"))} | variables
    done = subprocess.run(
        command, cwd=cwd, env=environment, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4_000:]
    return done.stdout


@pytest.fixture(scope="session")
def distributions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """An sdist of a copy of this tree, and the wheels that pip makes from that sdist, without a network."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler on this machine: nothing to compare the build without one to")
    # It takes a minute of compiling: the processes of one run share it.
    base = tmp_path_factory.getbasetemp()
    work = (base.parent if hasattr(request.config, "workerinput") else base) / "a build"
    with FileLock(f"{work}.lock"):
        if not (work / "plain log").exists():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            _build(work)
    (sdist,), (wheel,), (plain,) = (
        work.glob(name) for name in ("*.tar.gz", "native wheel/*", "plain wheel/*")
    )
    return Distributions(
        tree=work / "tree",
        sdist=sdist,
        wheel=wheel,
        plain_wheel=plain,
        plain_log=(work / "plain log").read_text(),
    )


def _build(work: Path) -> None:
    tree = work / "tree"
    shutil.copytree(ROOT, tree, ignore=LEAVE_OUT)
    _run([sys.executable, "-c", BUILD_SDIST, str(work)], tree)
    (sdist,) = work.glob("*.tar.gz")
    logs = {}
    for name, variables in (("native", {}), ("plain", {"CC": "/bin/false", "CXX": "/bin/false"})):
        source = work / name
        with tarfile.open(sdist) as archive:
            archive.extractall(source, filter="data")
        (unpacked,) = source.iterdir()
        into = work / f"{name} wheel"
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--verbose", "--wheel-dir", str(into)]
        logs[name] = _run([sys.executable, "-m", "pip", "wheel", *options, "."], unpacked, **variables)
    (work / "plain log").write_text(logs["plain"])
