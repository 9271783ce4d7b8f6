"""Stage text: plain text, and a share of texts to be said whose answer is the text itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muomni.config import RunConfig
from muomni.data.text_sets import training_texts
from muomni.data.wordings import SAY
from muomni.tokens import ASSISTANT, BOS, EOS, IGNORE_INDEX, USER
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


def test_a_copy_asks_for_a_training_text_and_answers_with_it(stage: TextStage) -> None:
    texts = {opening(text) for own in training_texts("train", stage.data).values() for text in own}
    copies = stage.copies(1e9)
    assert copies
    for document in copies:
        ids, ((start, end),) = document.input_ids.tolist(), document.answers
        said = stage.tokenizer.decode(ids[start:end])
        assert ids[:2] == [BOS, USER] and ids[start - 2 : start] == [EOS, ASSISTANT] and ids[end] == EOS
        assert stage.tokenizer.decode(ids[2 : start - 2]) == SAY + said and len(said) <= COPIED_CHARACTERS
        labels = document.labels.tolist()
        assert labels[start : end + 1] == ids[start : end + 1] and set(labels[:start]) == {IGNORE_INDEX}
    said = [d.input_ids[d.answers[0][0] : d.answers[0][1]].tolist() for d in copies]
    assert {stage.tokenizer.decode(ids) for ids in said} <= texts


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
