"""A cache whose packages need not be the pinned ones."""

from pathlib import Path

import pytest

from muomni.data.sources import fetch


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which an archive is its own digest, so that small ones can stand for those that are pinned."""
    monkeypatch.setattr(fetch, "_digest", lambda path: path.read_text())
    return tmp_path
