"""Shares of text sets against their closed form."""

import pytest

from muomni.data.text_mix import mix


def test_temperature_one_is_in_proportion_and_two_by_square_roots() -> None:
    sizes = {"a": 100.0, "b": 400.0, "c": 900.0}
    assert mix(sizes, temperature=1, technical_share=1) == pytest.approx(
        {"a": 1 / 14, "b": 4 / 14, "c": 9 / 14}
    )
    assert mix(sizes, temperature=2, technical_share=1) == pytest.approx({"a": 1 / 6, "b": 2 / 6, "c": 3 / 6})


def test_a_high_temperature_makes_shares_equal_and_no_size_overflows() -> None:
    assert mix({"a": 1, "b": 1e300}, temperature=1e9, technical_share=1) == pytest.approx(
        {"a": 0.5, "b": 0.5}
    )
    assert mix({"a": 1e-300, "b": 1e300}, temperature=1, technical_share=1)["b"] == 1


def test_technical_text_is_bounded_and_the_rest_goes_to_the_others_in_proportion() -> None:
    sizes = {"chat": 10, "manual": 60, "novel": 20, "faq": 10}
    shares = mix(sizes, ("manual", "faq"), temperature=1, technical_share=0.25)
    assert shares == pytest.approx({"chat": 0.25, "manual": 0.25 * 6 / 7, "novel": 0.5, "faq": 0.25 / 7})
    assert list(shares) == list(sizes)
    below = mix(sizes, ("faq",), temperature=1, technical_share=0.25)
    assert below == pytest.approx({"chat": 0.1, "manual": 0.6, "novel": 0.2, "faq": 0.1})


def test_technical_text_alone_is_not_bounded() -> None:
    assert mix({"a": 1, "b": 3}, {"a", "b"}, temperature=1, technical_share=0.1) == {"a": 0.25, "b": 0.75}


@pytest.mark.parametrize(
    ("sizes", "technical", "temperature", "share", "expected"),
    [
        ({"a": 1}, (), 0.5, 1, "temperature: 0.5"),
        ({"a": 1}, (), 1, 1.5, "technical_share: 1.5"),
        ({"a": 0}, (), 1, 1, "none empty"),
        ({}, (), 1, 1, "at least one set"),
        ({"a": 1}, ("b",), 1, 1, "'b' is not among the sets a"),
    ],
)
def test_what_cannot_be_mixed_is_said(
    sizes: dict[str, float], technical: tuple[str, ...], temperature: float, share: float, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        mix(sizes, technical, temperature=temperature, technical_share=share)
