"""A small source of all that tasks are made of, without a single file, for the tests of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from muomni.data.items import (
    SPLITS,
    Conversation,
    DialogueItem,
    Item,
    Kind,
    LineItem,
    Message,
    PictureItem,
    QuestionItem,
    Source,
    SpeechItem,
    Split,
)

THINGS = {
    "animal": ("dog", "cat", "horse", "cow", "owl", "ant"),
    "food": ("apple", "bread", "soup", "cake"),
    "tool": ("hammer", "saw", "axe"),
}
LONGEST = 16_000
"""Samples of the longest clip that is used; one of each kind is longer."""


class Made(Source):
    """Items by kind and split; files are never read."""

    def __init__(self, found: Mapping[Kind, Sequence[Item]]) -> None:
        """found: the items of each kind, of all splits."""
        self._found = found

    def items(self, kind: Kind, split: Split) -> list[Item]:
        """Those of a kind and a split, in order."""
        return [item for item in self._found.get(kind, ()) if item.split == split]

    def file(self, item: Item) -> bytes:
        """Never asked for."""
        raise AssertionError(f"{item.id} was read")


def full() -> Made:
    """Some of everything in every split; every label is the split's own."""
    found: dict[Kind, list[Item]] = {
        k: [] for k in ("speech", "questions", "pictures", "lines", "conversations", "dialogues")
    }
    for s in SPLITS:
        for style in ("photo", "icon"):
            for group, labels in THINGS.items():
                for label in labels:
                    captions = (f"{label} one {s}.", f"{label} two {s}.") if style == "photo" else ()
                    found["pictures"].append(
                        PictureItem(
                            id=f"{s}/{style}/{label}", label=f"{label}{s}", tags=(style,), group=group, split=s,
                            captions=captions, style=style,
                        )
                    )  # fmt: skip
        # Two of the same thing in one style, and one whose group nobody knows.
        found["pictures"].append(_picture(f"{s}/more", f"dog{s}", "animal", s))
        found["pictures"].append(_picture(f"{s}/unknown", f"riddle{s}", "", s))
        for i in range(5):
            n = LONGEST + 1 if i == 4 else 8_000 + i
            found["speech"].append(
                SpeechItem(
                    id=f"{s}/speech/{i}", text=f"sentence {i} {s}", raw_text="", speaker="v", synthetic=False,
                    split=s, n_samples=n,
                )
            )  # fmt: skip
            for kind, answer in (("name", ""), ("group", ""), ("definition", f"a thing numbered {i}")):
                found["questions"].append(
                    QuestionItem(
                        id=f"{s}/{kind}/{i}", text=f"what is {kind} {i} {s}", kind=kind, voice="v", synthetic=True,
                        split=s, n_samples=n, answer=answer,
                    )
                )  # fmt: skip
            found["lines"].append(LineItem(id=f"{s}/line/{i}", text=f"Written {i} {s}", split=s))
            found["conversations"].append(
                Conversation(
                    id=f"{s}/talk/{i}", split=s, turns=(f"hello {i} {s}", "hi", "how is it", f"well {i}", "!")
                )
            )
            found["conversations"].append(
                Conversation(
                    id=f"{s}/asked/{i}", split=s, turns=(f"what is word {i} {s}", f"a word with {i}")
                )
            )
            found["dialogues"].append(
                DialogueItem(
                    id=f"{s}/dialogue/{i}", split=s, sizes=(1, 2, 3), n_samples=(0, found["speech"][-1].n_samples, 0),
                    messages=(
                        Message(role="user", text=f"look {i} {s}", images=(2, 0)),
                        Message(role="assistant", text=f"i see {i}"),
                        Message(role="user", clips=(1,)),
                        Message(role="assistant", text=f"i hear {i}"),
                    ),
                )
            )  # fmt: skip
    return Made(found)


def _picture(id_: str, label: str, group: str, split: str) -> PictureItem:
    return PictureItem(id=id_, label=label, tags=(), group=group, split=split, style="photo")
