"""The items of a data set that a stage can use, and what it makes of their files; bad ones go to the quarantine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

from muomni.data.items import (
    KINDS,
    Conversation,
    DialogueFile,
    DialogueItem,
    Item,
    Kind,
    PictureItem,
    QuestionItem,
    Source,
    Split,
)
from muomni.data.media import read_text
from muomni.data.quarantine import Quarantine

BEFORE_TRAINING: tuple[Split, ...] = ("train", "validation")


def texts(item: Item) -> list[str]:
    """Every text of an item."""
    if isinstance(item, PictureItem):
        return [item.label, *([item.group] if item.group else []), *item.tags, *item.captions]
    if isinstance(item, Conversation):
        return list(item.turns) or [""]
    if isinstance(item, DialogueItem):
        return [message.text for message in item.messages if message.text] or [""]
    if isinstance(item, DialogueFile):
        return []
    if isinstance(item, QuestionItem) and item.answer:
        return [item.text, item.answer]
    return [item.text]


class Bounded:
    """Tensors by key, the least recently used dropped beyond a number of bytes."""

    def __init__(self, n_bytes: int) -> None:
        """Hold at most n_bytes; one tensor that is larger is not kept."""
        self.n_bytes, self.used = n_bytes, 0
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def get(self, key: Hashable) -> torch.Tensor | None:
        """What is kept under the key."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, value: torch.Tensor) -> None:
        """Keep a tensor under a new key."""
        self._kept[key] = value
        self.used += value.nbytes
        while self.used > self.n_bytes:
            self.used -= self._kept.popitem(last=False)[1].nbytes


class Usable(Source):
    """A source without the items that a quarantine keeps out, and what the stage's `read` makes of the others.

    A source whose files have not been admitted is read whole before training, so that bad items count at once; of one
    that has, files are read when they are first used.
    """

    def __init__(
        self,
        quarantine: Quarantine,
        source: Source,
        *,
        kinds: tuple[Kind, ...] = KINDS,
        read: Callable[[Item], torch.Tensor | None] | None = None,
        cache_bytes: int = 2**31,
    ) -> None:
        """Read the splits that every run needs.

        kinds: what the stage uses. read: what it makes of an item whose texts are sound, None for one that it has no
        room for; raises MediaError for a bad one. cache_bytes: what is kept of it in memory.
        """
        self._quarantine, self._kinds, self._read, self._source = quarantine, kinds, read, source
        self.admitted = source.admitted
        self._splits: dict[str, list[Item]] = {}
        self._cache = Bounded(cache_bytes)
        for split in BEFORE_TRAINING:
            self.all_items(split)

    def items(self, kind: Kind, split: Split) -> list[Item]:
        """The usable items of a kind in a split, in the source's order."""
        return [item for item in self.all_items(split) if item.of == kind]

    def file(self, item: Item) -> bytes:
        """An item's file as it is stored."""
        return self._source.file(item)

    def all_items(self, split: Split) -> list[Item]:
        """All of a split in the source's order, kind by kind; judged when they are first asked for."""
        if split not in self._splits:
            found: list[Item] = [item for kind in self._kinds for item in self._source.items(kind, split)]
            kept = self._quarantine.keep(found, self._judge, split=split)
            self._splits[split] = [item for item, _ in kept]
            for item, value in kept:
                if value is not None:
                    self._cache.put(item.id, value)
        return self._splits[split]

    def value(self, item: Item) -> torch.Tensor | None:
        """What `read` gives for an item; None when its file turns out to be bad: its place stays empty."""
        found = self._cache.get(item.id)
        if found is None and self._read is not None:
            found = self._quarantine.read(item, self._read, split=item.split)
            if found is not None:
                self._cache.put(item.id, found)
        return found

    def derived(
        self, item: Item, name: Hashable, make: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor | None:
        """What `make` gives for an item's value, kept as values are; `name` tells it from others of the item."""
        found = self._cache.get((item.id, name))
        if found is None and (value := self.value(item)) is not None:
            found = make(value)
            self._cache.put((item.id, name), found)
        return found

    def _judge(self, item: Item) -> torch.Tensor | None:
        for text in texts(item):
            read_text(text, name=item.id)
        # Held-out items are few, and what is measured on them must not change within a run.
        later = self._source.admitted and item.split == "train"
        return self._read(item) if self._read is not None and not later else None
