"""No item, sentence or concept is in two splits of the prepared sets: `python tests/data/no_leaks.py ROOT NAMES`.

Prints what was compared and ends with 1 where something is in two splits. Part of `make data-small`.
"""

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from muomni.data.items import KINDS, SPLITS, Split
from muomni.data.prepared import Prepared, folders

LISTED = Path(__file__).resolve().parents[1] / "golden" / "held_out_speech.tsv"
SPOKEN_FROM_CONVERSATIONS = ("hibari", "flite")
"""Voices that say sentences of the conversations; recorded prompts may happen to be said in one, too."""


def words(text: str) -> str:
    """Letters and digits in lower case, single spaces: as a reader would compare two texts."""
    return " ".join(re.findall(r"[^\W_]+", text.lower().replace("'", "")))


def things(source: Prepared, split: Split) -> Iterator[tuple[str, str]]:
    """(what is compared, one thing) for everything of a split that no other split may have."""
    for item in source.speech(split):
        yield "heard", words(item.text)
        if item.id.split("/")[0].split("-")[0] in SPOKEN_FROM_CONVERSATIONS:
            yield "heard and read", words(item.text)
    for item in source.questions(split):
        yield "asked", words(item.text)
    for item in source.lines(split):
        yield "written", words(item.text)
    for item in source.pictures(split):
        yield "drawn", words(item.label)
    for item in source.texts(split):
        yield "text", words(item.text)
    for talk in source.conversations(split):
        yield "talk", words(talk.text)


def sentences(source: Prepared, split: Split) -> set[str]:
    """Sentences of the conversations."""
    turns = (turn for talk in source.conversations(split) for turn in talk.turns)
    return {words(one) for turn in turns for one in re.split(r"(?<=[.?!])\s+", turn)}


def main(root: Path, names: str) -> int:
    """Compare every pair of splits."""
    source = Prepared(folders(names, root=root))
    found = {split: set(things(source, split)) for split in SPLITS}
    said = {split: sentences(source, split) for split in SPLITS}
    bad: list[str] = []
    for one, other in itertools.permutations(SPLITS, 2):
        both = found[one] & found[other] if one < other else set()
        heard = {text for what, text in found[one] if what == "heard and read"} & said[other]
        bad += [f"{what} in {one} and {other}: {text}" for what, text in sorted(both)]
        bad += [f"heard in {one}, read in {other}: {text}" for text in sorted(heard)]
    for kind in KINDS:
        prints = {split: np.unique(source.fingerprints(kind, split)) for split in SPLITS}
        same = np.intersect1d(prints["train"], np.union1d(prints["validation"], prints["test"]))
        bad += [f"{kind}: {len(same)} fingerprints of training are held out"] if len(same) else []
    listed = {line.partition("\t")[2] for line in LISTED.read_text(encoding="utf-8").splitlines()}
    trained = {item.text for item in source.speech("train")} & listed
    bad += [f"heard in train, listed as held out: {text}" for text in sorted(trained)]
    n_things = {split: len(found[split]) for split in SPLITS}
    print(
        f"leaks: {len(bad)} among {n_things} sentences, texts, labels and {sum(map(len, said.values()))} read"
    )
    print("\n".join(bad[:40]))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
