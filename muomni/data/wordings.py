"""How each thing is asked for: several wordings a task, each in one split, so a held-out wording was never seen."""

from __future__ import annotations

from muomni.data.items import Split

SAY = "say: "
"""How a user asks for a text to be spoken: a command of our own, with no other wording. The Talker is trained on the
answers to it."""

# Training wordings, then those of validation, then those of test.
_TABLE: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "name": (
        (
            "what is this", "what do you see", "what does the picture show", "name this picture",
            "tell me what this is", "what can you see in this picture", "can you name this", "what am i looking at",
        ),
        ("please name the picture",),
        ("what is in this picture", "tell me what you see"),
    ),
    "group": (
        (
            "what kind of thing is this", "which kind is it", "what group does this belong to", "which group is this",
            "what category is it", "tell me the category", "what sort of thing is it",
            "which category does this belong to",
        ),
        ("what kind is this",),
        ("which group does it belong to", "what category is this"),
    ),
    "caption": (
        (
            "describe the picture", "describe this picture in a sentence", "write a caption",
            "say in a sentence what happens here", "give the picture a caption",
            "what happens in the picture", "write what the picture shows", "describe this",
            "tell me about this picture", "write a line about what you see",
        ),
        ("describe what you see",),
        ("write a sentence about this picture", "what is happening in this picture"),
    ),
    "count": (
        (
            "how many pictures are there", "how many pictures do you see", "count the pictures",
            "tell me how many pictures these are",
            "how many pictures are these", "how many are there", "give me the number of pictures you see",
            "say how many pictures you got", "what number of pictures is this", "count them",
            "how many pictures have i shown you", "the number of pictures, please",
        ),
        ("what is the number of pictures",),
        ("how many pictures did i send", "give the number of pictures"),
    ),
    "count kind": (
        (
            "how many pictures show {thing}", "how many of these show {thing}", "count the pictures that show {thing}",
            "on how many pictures do you see {thing}",
            "how many pictures have {thing}", "count how often {thing} is shown", "how many times do you see {thing}",
            "in how many of these is {thing}", "tell me the number of pictures that show {thing}",
            "how often is {thing} in these pictures",
        ),
        ("how often do you see {thing}",),
        ("how many of the pictures show {thing}", "what is the number of pictures with {thing}"),
    ),
    "yes or no": (
        (
            "is this {thing}", "does this show {thing}", "do you see {thing}", "is {thing} in the picture",
            "is that {thing}", "is there {thing} in this picture", "would you say this is {thing}",
            "does it show {thing}", "can {thing} be seen here", "tell me if this is {thing}",
            "is {thing} what you see", "yes or no, is this {thing}",
        ),
        ("can you see {thing} here",),
        ("does the picture show {thing}", "is it {thing}"),
    ),
    "odd one out": (
        (
            "which picture is of another group", "which one does not belong", "which picture is the odd one out",
            "one of these is of another kind, which one",
            "which one is different", "which picture is not like the others", "one picture does not belong here, which",
            "tell me the odd one out", "find the one that is of another kind", "which of the pictures is different",
        ),
        ("which picture does not fit",),
        ("which of these is different from the others", "find the picture that does not belong"),
    ),
    "read": (
        (
            "what is written here", "read the picture", "what does it say", "write down the text in the picture",
            "what is written in this picture", "read the text", "tell me what is written here",
            "which words are these", "what words do you see", "copy the text",
        ),
        ("read this to me",),
        ("what text do you see", "read what is written"),
    ),
    "transcribe": (
        (
            "transcribe the recording", "what is said here", "write down what you hear", "transcribe this",
            "write what you hear", "what did they say", "tell me what is said", "what does the voice say",
            "write down the words", "which words do you hear",
        ),
        ("write what is said",),
        ("what do you hear", "give me a transcript of the recording"),
    ),
}  # fmt: skip
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")

WORDINGS: dict[str, tuple[tuple[str, Split], ...]] = {
    task: tuple((wording, split) for split, own in zip(_SPLITS, table, strict=True) for wording in own)
    for task, table in _TABLE.items()
}
"""(wording, split) of each task; {thing} stands for a label or a group with its article."""


def wordings(task: str, split: Split) -> tuple[str, ...]:
    """The wordings of a task in a split."""
    return tuple(wording for wording, own in WORDINGS[task] if own == split)


def with_article(thing: str) -> str:
    """A thing's name with its article: none for several, for a proper name, or for what has a colon.

    The article goes by the first letter, as `a` before all but a, e, i, o, u.
    """
    if ":" in thing or thing[:1] != thing[:1].lower() or not thing[:1].isalpha():
        return thing
    if thing.endswith("s") and not thing.endswith(("ss", "us", "is")):
        return thing
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
