"""Texts to be repeated: the question or what is heard holds the answer, and misspelling spells what an ear can."""

import numpy as np
import pytest

from muomni.data.audio import CTC_SYMBOLS, normalise_transcript
from muomni.data.repeats import Repeat, misspelt, repeat
from muomni.data.wordings import SAY, wordings
from muomni.metrics.edit import error_rate

TEXT = "Sorry, I had to leave the other chat!"


def _drawn(text: str, n: int = 400) -> list[Repeat]:
    return [repeat(text, np.random.default_rng((0, i))) for i in range(n)]


def test_the_answer_is_what_was_given_and_the_forms_have_their_shares() -> None:
    found = _drawn(TEXT)
    asks = set(wordings("transcribe", "train"))
    for one in found:
        assert (
            one.heard == one.answer and one.question in asks
            if one.heard
            else one.question == SAY + one.answer
        )
    plain = [one.answer == TEXT for one in found]
    heard = [bool(one.heard) for one in found]
    # 400 draws: four standard errors of a half and of a quarter.
    assert abs(np.mean(plain) - 0.5) < 0.1 and abs(np.mean(heard) - 0.25) < 0.09
    assert {one.heard for one in found if one.heard} - {normalise_transcript(TEXT)}


def test_a_text_without_letters_is_said_as_it_is() -> None:
    assert {(one.heard, one.question, one.answer) for one in _drawn("1, 2 ☃", 20)} == {
        ("", SAY + "1, 2 ☃", "1, 2 ☃")
    }


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_so_many_letters_are_wrong(share: float) -> None:
    """By edit distance, which a mistake beside another can only lower; a space taken for itself is none."""
    said = normalise_transcript(TEXT)
    spelled = [misspelt(said, np.random.default_rng(i), share=share) for i in range(300)]
    assert all(set(text) <= set(CTC_SYMBOLS) - {"_"} and text == " ".join(text.split()) for text in spelled)
    rate = error_rate([said] * 300, spelled).value
    assert (rate == 0.0) if share == 0.0 else 0.75 * share < rate < 1.05 * share
