"""The wheel holds the two packages, the extension and the embedded data, the shipped models, and nothing else."""

from __future__ import annotations

import re
import zipfile
from email import message_from_string
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Distributions

ROOT = Path(__file__).resolve().parents[2]


def expected_files(tree: Path) -> set[str]:
    """Names in the wheel of every source, embedded and shipped file of the tree."""
    sources = {str(path.relative_to(tree)) for path in (tree / "muomni").rglob("*.py")}
    kernels = {str(path.relative_to(tree / "kernels")) for path in (tree / "kernels").rglob("*.py")}
    embedded = {str(path.relative_to(tree)) for path in (tree / "muomni/data/embedded").iterdir()}
    shipped = {str(path.relative_to(tree)) for path in (tree / "muomni/shipped").glob("*/*")}
    assert shipped, "a model comes with the package"
    return sources | kernels | embedded | shipped | {"muomni_kernels/dispatch.json"}


def test_wheel_holds_the_packages_the_extension_and_the_data_only(distributions: Distributions) -> None:
    names = set(zipfile.ZipFile(distributions.wheel).namelist())
    about = {name for name in names if name.startswith("muomni-0.1.0.dist-info/")}
    extension = {name for name in names if re.fullmatch(r"muomni_kernels/_C[^/]*\.(so|pyd)", name)}
    assert len(extension) == 1
    assert names - about - extension == expected_files(distributions.tree)
    assert {"muomni-0.1.0.dist-info/licenses/LICENSE", "muomni-0.1.0.dist-info/entry_points.txt"} <= about


def test_wheel_without_a_compiler_lacks_the_extension_only(distributions: Distributions) -> None:
    names = set(zipfile.ZipFile(distributions.plain_wheel).namelist())
    assert {name for name in names if "dist-info" not in name} == expected_files(distributions.tree)
    assert 'building extension "muomni_kernels._C" failed' in distributions.plain_log


def test_metadata_names_the_command_and_what_is_needed(distributions: Distributions) -> None:
    archive = zipfile.ZipFile(distributions.wheel)
    entry_points = archive.read("muomni-0.1.0.dist-info/entry_points.txt").decode()
    assert "muomni = muomni.cli:main" in entry_points
    about = message_from_string(archive.read("muomni-0.1.0.dist-info/METADATA").decode())
    assert about["License-Expression"] == "MIT"
    needed = {
        re.split(r"[<>=; ]", line)[0] for line in about.get_all("Requires-Dist", []) if "extra ==" not in line
    }
    assert needed == {
        "num2words", "numpy", "pillow", "rich", "safetensors", "soundfile", "soxr", "tokenizers", "torch", "tyro",
    }  # fmt: skip


def test_extension_links_neither_torch_nor_cuda(distributions: Distributions) -> None:
    archive = zipfile.ZipFile(distributions.wheel)
    (name,) = (name for name in archive.namelist() if "/_C" in name)
    content = archive.read(name)
    assert b"libstdc++" in content or b"libc++" in content, "the names of the libraries it needs are readable"
    for library in (b"libtorch", b"libc10", b"libcud", b"libasan"):
        assert library not in content


def test_pins_are_for_dependencies_that_exist() -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text()
    assert {"torch", "numpy", "triton"} <= set(pins)
    assert all(f'"{name}>=' in project for name in pins)
