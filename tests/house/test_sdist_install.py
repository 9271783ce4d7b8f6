"""`pip install` of the source distribution, with and without a compiler: both compute the same spectrogram."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Distributions

PROBE = """
import json, muomni, muomni_kernels, torch
wave = torch.randn(4_000, generator=torch.Generator().manual_seed(0)) * 0.1
rows = {f"{op} {backend}": reason for op, backend, runs, reason in muomni_kernels.doctor_rows() if not runs}
mel = muomni_kernels.log_mel(wave, floor=1e-7)
stacked = muomni_kernels.mel_downsample(mel, mode="mean")
print(json.dumps({
    "files": [muomni.__file__, muomni_kernels.__file__], "mel": mel.flatten().tolist(),
    "mean": stacked.flatten().tolist(), "against": rows,
}))
"""


def installed(wheel: Path, into: Path) -> dict[str, Any]:
    """Installs a wheel alone and runs the probe on it from elsewhere."""
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--target", str(into)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True, cwd=into)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MUOMNI"))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE],
        env=environment | {"PYTHONPATH": str(into), "OMP_NUM_THREADS": "1"},
        check=True, cwd=into.parent, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert all(Path(name).is_relative_to(into) for name in found["files"]), found["files"]
    return found


def test_install_without_a_compiler_computes_the_same(distributions: Distributions, tmp_path: Path) -> None:
    found = {}
    for name in ("wheel", "plain_wheel"):
        (tmp_path / name).mkdir()
        found[name] = installed(getattr(distributions, name), tmp_path / name)
    assert not any("cpp" in row for row in found["wheel"]["against"])
    assert "C++ compiler" in found["plain_wheel"]["against"]["log_mel cpp"]
    for key in ("mel", "mean"):
        assert found["wheel"][key] == pytest.approx(found["plain_wheel"][key], abs=1e-3)


def test_sdist_holds_what_a_build_and_the_tests_need(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = (
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "csrc/bindings.cpp",
        "csrc/fft.inc.h",
        "kernels/muomni_kernels/mel.py",
        "muomni/data/embedded/ATTRIBUTION.md",
        "pyproject.toml",
        "setup.py",
        "tests/fuzz_case.h",
        "tests/kernels/test_mel.py",
        "tests/sanitize.sh",
    )
    assert set(needed) <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
