"""The items of a data set that a stage can use: each split is read once, through the quarantine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from muomni.data import embedded
from muomni.data.embedded import Conversation, PictureItem, QuestionItem, SpeechItem
from muomni.data.media import read_text
from muomni.data.quarantine import Quarantine

Kind = Literal["speech", "questions", "pictures", "conversations"]
BEFORE_TRAINING: tuple[embedded.Split, ...] = ("train", "validation")
KINDS: tuple[Kind, ...] = ("speech", "questions", "pictures", "conversations")
Item = SpeechItem | QuestionItem | PictureItem | Conversation


def texts(item: Item) -> list[str]:
    """Every text of an item."""
    if isinstance(item, PictureItem):
        return [item.label, item.group, *item.tags]
    return list(item.turns) or [""] if isinstance(item, Conversation) else [item.text]


class Usable:
    """A source (embedded.Source) without the items that a quarantine keeps out."""

    def __init__(
        self,
        quarantine: Quarantine,
        *,
        kinds: tuple[Kind, ...] = KINDS,
        read: Callable[[Item], torch.Tensor | None] | None = None,
        source: embedded.Source = embedded,
    ) -> None:
        """Read the splits that every run needs.

        kinds: what the stage uses. read: what it makes of an item whose texts are sound, None for one that it has no
        room for; raises MediaError for a bad one.
        """
        self._quarantine, self._kinds, self._read, self._source = quarantine, kinds, read, source
        self._splits: dict[str, list[Item]] = {}
        self._values: dict[Item, torch.Tensor] = {}
        for split in BEFORE_TRAINING:
            self.items(split)

    def speech(self, split: embedded.Split) -> list[SpeechItem]:
        """Recordings."""
        return [item for item in self.items(split) if isinstance(item, SpeechItem)]

    def questions(self, split: embedded.Split) -> list[QuestionItem]:
        """Spoken questions."""
        return [item for item in self.items(split) if isinstance(item, QuestionItem)]

    def pictures(self, split: embedded.Split) -> list[PictureItem]:
        """Pictures."""
        return [item for item in self.items(split) if isinstance(item, PictureItem)]

    def conversations(self, split: embedded.Split) -> list[Conversation]:
        """Conversations."""
        return [item for item in self.items(split) if isinstance(item, Conversation)]

    def items(self, split: embedded.Split) -> list[Item]:
        """All of them, in the source's order, read when they are first asked for."""
        if split not in self._splits:
            found: list[Item] = [item for kind in self._kinds for item in getattr(self._source, kind)(split)]
            kept = self._quarantine.keep(found, self._value, split=split)
            self._splits[split] = [item for item, _ in kept]
            self._values.update((item, value) for item, value in kept if value is not None)
        return self._splits[split]

    def value(self, item: Item) -> torch.Tensor:
        """What `read` gave for an item."""
        return self._values[item]

    def take(self, item: Item) -> torch.Tensor:
        """The same, and forget it here."""
        return self._values.pop(item)

    def _value(self, item: Item) -> torch.Tensor | None:
        for text in texts(item):
            read_text(text, name=item.id)
        return self._read(item) if self._read is not None else None
