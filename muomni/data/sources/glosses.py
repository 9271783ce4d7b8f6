"""WordNet's glosses as texts, and as typed questions with their answers.

The format is that of wndb(5WN).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from muomni.data.sources import prose
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import Package, SourceError, fetch
from muomni.data.splits import normalised

WORDNET = Package(
    registry="debian",
    name="wordnet-base",
    version="1:3.0-37",
    sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    n_bytes=6_467_132,
    licence="WordNet-3.0",
    attribution="WordNet 3.0, Copyright 2006 by Princeton University. All rights reserved.",
    gives="words and glosses (data.*), which sense of a word is its most frequent (index.*)",
)
PARTS = ("noun", "verb", "adj", "adv")
"""Parts of speech; a word is asked for once, as the first of them that it can be."""

_COUNTED = {5, 6, 8, 13, 14, 17, 18, 20, 25}
"""Files whose nouns take an article if their gloss begins with one: animal, artifact, body, food, group, object,
person, plant, shape (lexnames(5WN))."""
_UNCOUNTED = {7, 12, 19, 22, 26, 27}
"""Files whose nouns take none: attribute, feeling, phenomenon, process, state, substance."""
_VOWEL = re.compile(
    r"(?!eu|ew|on(?:e|ce)\b|u-|ubi|uni(?!m|nt)|ur[aeio]|us(?!h)|ut(?!t))[aeiou]|hour|heir|hono"
)
"""How words begin that take `an`."""
_RUDE = re.compile(
    r"\b(?:offensive|slurs?|obscene|obscenity|disparaging|derogatory|vulgar|sexual|genital\w*|sex|penis|vagina)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Synset:
    """Words of one meaning, with its gloss."""

    part: str
    offset: str
    """Its place in its file, eight digits."""
    file: int
    """What it is about (lexnames(5WN))."""
    words: tuple[str, ...]
    gloss: str
    """What it means, without examples."""
    examples: str
    """In quotation marks, with semicolons between; or empty."""


def synsets(folder: Path, part: str) -> Iterator[Synset]:
    """The synsets of a part of speech, in the file's order. Raises SourceError when the file is missing or broken."""
    for line in _lines(folder, f"data.{part}"):
        data, bar, said = line.partition("|")
        fields = data.split()
        try:
            words = tuple(fields[4 + 2 * n] for n in range(int(fields[3], 16)))
            file = int(fields[1])
        except (IndexError, ValueError):
            bar, words, file = "", (), 0
        if not bar or not words:
            raise SourceError(f"data.{part}: {line[:40]!r} is no synset; fetch {WORDNET.name} again.")
        gloss, mark, examples = prose.plain(said.replace("_", " ")).partition('; "')
        yield Synset(
            part=part,
            offset=fields[0],
            file=file,
            words=tuple(re.sub(r"\([a-z]+\)$", "", word).replace("_", " ") for word in words),
            gloss=gloss.strip(" ;"),
            examples=mark.lstrip("; ") + examples,
        )


def first_senses(folder: Path, part: str) -> dict[str, str]:
    """The offset of each word's most frequent sense."""
    found: dict[str, str] = {}
    for line in _lines(folder, f"index.{part}"):
        fields = line.split()
        found[fields[0].replace("_", " ")] = fields[-int(fields[2])]
    return found


def _lines(folder: Path, name: str) -> Iterator[str]:
    path = next(folder.rglob(name), None)
    if path is None:
        raise SourceError(f"{folder}: has no {name}; expected WordNet's database.")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        # The licence stands first, its lines indented.
        if line and not line.startswith("  "):
            yield line


def question(synset: Synset) -> str:
    """A question that its gloss answers; which of several wordings is decided by a hash of the word."""
    word = synset.words[0]
    choice = zlib.crc32(f"question {word}".encode())
    if synset.part == "verb":
        asked = (
            f"What does it mean to {word}?",
            f'What does the verb "{word}" mean?',
            f'What does "{word}" mean?',
        )
    elif synset.part != "noun":
        asked = (
            f'What does "{word}" mean?',
            f'What is the meaning of "{word}"?',
            f'Explain the word "{word}".',
        )
    elif word[0].isupper():
        is_born = re.search(r"\(.*\d{3,4}.*\)|\bborn\b", synset.gloss) and synset.file == 18
        asked = (f"Who was {word}?",) if is_born else (f"What is {word}?",) if synset.file != 18 else ()
        asked = asked or (f'What does "{word}" mean?',)
    elif synset.file in _COUNTED and re.match(r"an? ", synset.gloss):
        article = "an" if _VOWEL.match(word) else "a"
        asked = (f"What is {article} {word}?", f'What does "{word}" mean?', f"What is {article} {word}?")
    elif synset.file in _UNCOUNTED and not re.match(r"an? ", synset.gloss):
        asked = (f"What is {word}?", f'What does "{word}" mean?', f"What is {word}?")
    else:
        asked = (f'What does "{word}" mean?', f'What is the meaning of "{word}"?', f'Define "{word}".')
    return asked[choice % len(asked)]


def answer(synset: Synset) -> str:
    """The gloss as a sentence."""
    text = re.sub(r"^\([^()]*\) ", "", synset.gloss).strip(" ;,:")
    return f"{text[:1].upper()}{text[1:]}."


def find(cache: Path) -> Iterator[Found]:
    """Every gloss once, with its examples, as a text; the first sense of each word also as a question.

    Both are in the split of the synset's first word. Left out: glosses that call a word offensive or are about sex.
    """
    folder = fetch(WORDNET, cache)
    seen: set[str] = set()
    asked: set[str] = set()
    for part in PARTS:
        first = first_senses(folder, part)
        for synset in synsets(folder, part):
            word, meaning = synset.words[0], normalised(synset.gloss)
            said = f"{', '.join(synset.words)}: {synset.gloss}"
            if not meaning or meaning in seen or _RUDE.search(said):
                continue
            seen.add(meaning)
            identifier, group = f"wordnet/{part}-{synset.offset}", prose.word_group(word)
            text = said + (f"; {synset.examples}" if synset.examples else "")
            yield prose.found(identifier, text, group=group)
            key = word.casefold()
            if (
                first.get(key) != synset.offset
                or key in asked
                or not re.fullmatch(r"[\w' .-]*[A-Za-z]{2}[\w' .-]*", word)
            ):
                continue
            asked.add(key)
            turns = (question(synset), answer(synset))
            yield Found(
                kind="conversations", id=f"{identifier}/question", group=group, fields={"turns": turns}
            )


ADAPTERS = (
    Adapter(
        name="wordnet",
        title="glosses of English words, and questions they answer",
        stages=("text", "omni"),
        licence=WORDNET.licence,
        find=find,
        packages=(WORDNET,),
        version=2,
    ),
)
