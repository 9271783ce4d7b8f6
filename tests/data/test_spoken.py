"""Numbers as words: written out by hand, long ones digit by digit."""

import pytest

from muomni.data.spoken import as_words


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("4 & 22nd", "four and twenty-second"),
        ("$1,234.5", "one thousand, two hundred and thirty-four point five dollars"),
        ("007", "seven"),
        ("100000000000000", "one hundred trillion"),
        ("1000000000000000", "one" + " zero" * 15),
        ("12345678901234567890", " ".join(["one two three four five six seven eight nine zero"] * 2)),
        ("1000000000000003rd", "one" + " zero" * 14 + " third"),
        ("0.0000000000000001", "zero point" + " zero" * 15 + " one"),
        ("9" * 400, "nine" + " nine" * 399),
        ("9" * 4_400, "nine" + " nine" * 4_399),
        ("9" * 400 + ".5", "nine " * 400 + "point five"),
        ("\N{ARABIC-INDIC DIGIT THREE}" * 16, "three" + " three" * 15),
        ("9" * 100_000 + "x", "9" * 100_000 + "x"),
    ],
    ids=range(13),
)
def test_numbers_of_any_length_are_read(written: str, said: str) -> None:
    assert " ".join(as_words(written).split()) == said
