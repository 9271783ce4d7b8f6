"""The form that is scored: two writings of what is heard become one, different words stay different."""

import pytest

from muomni.evaluate.scored_text import scored_form


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        ("Press 1, then 2.", "press one then two"),
        ("It's  a well-known place!", "its a well known place"),
        ("the 4th of 21 rooms", "the fourth of twenty one rooms"),
        ("1,234 people", "one thousand two hundred thirty four people"),
        ("one hundred and five", "one hundred five"),
        ("105 items", "one hundred five items"),
        ("2.5 miles, 50%", "two point five miles fifty percent"),
        ("$5 & up", "five dollars and up"),
        ("$1,000", "one thousand dollars"),
        ("at 9 a.m. or 10 PM", "at nine am or ten pm"),
        ("at nine a m", "at nine am"),
        ("the P.B.X.", "the pbx"),
        ("naïve café", "naive cafe"),
        ("don’t", "dont"),
        ("salt and pepper", "salt and pepper"),
        ("I am a cat", "i am a cat"),
        ("", ""),
        ("...", ""),
    ],
)
def test_what_is_heard_is_written_one_way(written: str, heard: str) -> None:
    assert scored_form(written) == heard
    assert scored_form(heard) == heard


def test_other_words_stay_other_words() -> None:
    assert scored_form("press one") != scored_form("press nine")
    assert scored_form("1234") != scored_form("1,2,3,4")
