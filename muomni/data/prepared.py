"""Prepared sets as sources."""

from __future__ import annotations

from muomni.data import embedded
from muomni.data.items import Source


def open_source(name: str) -> Source:
    """What a run is trained on. Raises UserError for a set that is not there."""
    return embedded.SET
