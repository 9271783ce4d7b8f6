"""Stage text: plain text, and a share of texts to be repeated whose answer is the text itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muomni.config import RunConfig
from muomni.data.text_sets import training_texts
from muomni.data.wordings import SAY, wordings
from muomni.tokens import ASSISTANT, BOS, EOS, HEARD, IGNORE_INDEX, USER
from muomni.train.stages.text import COPIED_CHARACTERS, COPIED_SHARE, TextStage, opening

pytestmark = pytest.mark.usefixtures("small_data")


@pytest.fixture
def stage(small_run: Callable[..., RunConfig], trained: Path) -> TextStage:
    run = small_run("text")
    made = TextStage(run)
    made.build(run, trained)
    return made


def _taken(stage: TextStage) -> list[Any]:
    return stage._order("train")[0]


def test_a_copy_holds_what_it_asks_for_and_answers_with_it(stage: TextStage) -> None:
    texts = {opening(text) for own in training_texts("train", stage.data).values() for text in own}
    copies = stage.copies(1e9)
    heard, asks = 0, set(wordings("transcribe", "train"))
    repeated = set()
    for document in copies:
        ids, ((start, end),) = document.input_ids.tolist(), document.answers
        said, asked = ids[start:end], ids[2 : start - 2]
        assert ids[:2] == [BOS, USER] and ids[start - 2 : start] == [EOS, ASSISTANT] and ids[end] == EOS
        if HEARD in asked:
            heard += 1
            place = asked.index(HEARD)
            assert asked[:place] == said and stage.tokenizer.decode(asked[place + 1 :]) in asks
        else:
            # The very ids of the answer, also of its first word.
            assert asked[-len(said) :] == said
            assert stage.tokenizer.decode(asked) == SAY + stage.tokenizer.decode(said)
            repeated.add(stage.tokenizer.decode(said))
        labels = document.labels.tolist()
        assert labels[start : end + 1] == ids[start : end + 1] and set(labels[:start]) == {IGNORE_INDEX}
    # Each of the three forms: as it is, spelled as an ear does, and that in the place of a recording.
    assert repeated & texts and repeated - texts and heard


def test_copies_are_their_share_of_the_training_positions_and_none_of_what_is_measured(
    stage: TextStage,
) -> None:
    taken, plain = _taken(stage), stage.documents("train")
    copies = [d for d in taken if d.answers]
    assert len(taken) == len(plain) + len(copies) and not any(d.answers for d in plain)
    assert not any(d.answers for split in ("validation", "test") for d in stage._order(split)[0])
    longest = max(map(len, stage.copies(1e9)))
    for n_tokens in (0, 50, 200):
        assert n_tokens <= sum(map(len, stage.copies(n_tokens))) < n_tokens + longest + 1
    # As much as there is: a small set has fewer openings than their share.
    n_plain, n_copied = sum(map(len, plain)), sum(map(len, copies))
    there = sum(map(len, stage.copies(1e9)))
    assert n_copied == there or COPIED_SHARE <= n_copied / (n_plain + n_copied) < COPIED_SHARE + 0.02


def test_a_long_text_is_said_as_far_as_its_words_are_whole() -> None:
    assert opening("short text") == "short text"
    long = "word " * 40
    assert opening(long) == " ".join(["word"] * 24)
    assert opening("x" * COPIED_CHARACTERS) == "x" * COPIED_CHARACTERS
    # Writing without spaces has no words to keep whole.
    assert opening("x" * 200) == "x" * COPIED_CHARACTERS
