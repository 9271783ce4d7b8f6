"""The texts of a source: what stage text is trained on, by set, and what it is measured on."""

from __future__ import annotations

from muomni.data.items import Source, Split

WORDS = "words"
"""What is said, asked, shown and written of all sets, as one set of the mix."""


def training_texts(split: Split, source: Source) -> dict[str, list[str]]:
    """Every text of a split by set: conversations and prose; and transcripts, questions, pictures' words and lines."""
    found: dict[str, list[str]] = {}
    for item in (*source.conversations(split), *source.texts(split)):
        found.setdefault(set_of(item.id, source), []).append(item.text)
    # The same sentence is spoken by many voices, the same picture drawn in many styles.
    words = dict.fromkeys(
        [
            *(item.text for item in source.speech(split)),
            *("\n".join(filter(None, (item.text, item.answer))) for item in source.questions(split)),
            *("\n".join([i.label, *i.captions, ", ".join(i.tags)]) for i in source.pictures(split)),
            *(item.text for item in source.lines(split)),
        ]
    )
    return found | ({WORDS: list(words)} if words else {})


def held_texts(split: Split, source: Source) -> dict[str, list[str]]:
    """What is measured on, by set: conversations; prose where there are none, and words where there is neither."""
    by_kind = (source.conversations(split), source.texts(split))
    items = next((items for items in by_kind if items), None)
    if items is None:
        return {name: texts for name, texts in training_texts(split, source).items() if name == WORDS}
    found: dict[str, list[str]] = {}
    for item in items:
        found.setdefault(set_of(item.id, source), []).append(item.text)
    return found


def set_of(item_id: str, source: Source) -> str:
    """The prepared set that an item's id names; "text" for a source that is one set."""
    return item_id.partition("/")[0] if source.admitted else "text"
