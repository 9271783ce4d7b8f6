"""Under `make test` the suite runs against the installed wheel, not against the sources beside it."""

import os
from pathlib import Path

import muomni_kernels
import pytest

import muomni

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif("MUOMNI_TEST_INSTALLED" not in os.environ, reason="only `make test` installs the wheel")
@pytest.mark.parametrize("package", [muomni, muomni_kernels], ids=lambda p: p.__name__)
def test_package_is_the_installed_one(package: object) -> None:
    path = Path(str(package.__file__)).resolve()  # pyright: ignore[reportAttributeAccessIssue]
    assert "site-packages" in path.parts
    assert not path.is_relative_to(ROOT / "muomni")
    assert not path.is_relative_to(ROOT / "kernels")
