"""Stop strings: what is given out is the text before the first of them, in whatever pieces it comes."""

from hypothesis import given
from hypothesis import strategies as st

from muomni.infer.stops import LONGEST_PERIOD, SHORTEST_LOOP, Loops, Stops


@given(
    text=st.text(alphabet="abc", max_size=30),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_what_is_given_out_is_what_comes_before_the_first_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    places = [(at + len(stop), at) for at in range(len(text)) for stop in stops if text.startswith(stop, at)]
    taken, given_out, bounds = Stops(stops), "", sorted({0, *(min(c, len(text)) for c in cuts), len(text)})
    for start, end in zip(bounds, bounds[1:], strict=False):
        given_out += taken.push(text[start:end])
    given_out += taken.finish()
    assert taken.met == bool(places)
    # The one that ends first, and of several the longest.
    assert given_out == (text[: min(places)[1]] if places else text)


def test_what_may_become_a_stop_is_kept_back_and_given_when_it_does_not() -> None:
    stops = Stops(["<end>"])
    assert [stops.push(piece) for piece in ("one <", "en", "two <end", ">", "three")] == [
        "one ", "", "<entwo ", "", "",
    ]  # fmt: skip
    assert stops.met and stops.finish() == ""


def test_without_stop_strings_nothing_is_kept_back() -> None:
    stops = Stops(["", ""])
    assert (stops.strings, stops.push("abc"), stops.met) == ((), "abc", False)


@given(
    st.lists(st.integers(0, 3), max_size=6),
    st.lists(st.integers(0, 3), min_size=1, max_size=18),
    st.integers(1, 40),
    st.integers(2, 5),
)
def test_a_loop_is_met_where_the_last_tokens_are_one_sequence_so_often(
    before: list[int], period: list[int], n: int, max_repeats: int
) -> None:
    """By comparing slices, after each token."""
    loops, text = Loops(max_repeats), (before + period * n)[:90]
    for end in range(1, len(text) + 1):
        loops.push(text[end - 1])
        expected = any(
            end >= n and text[end - n : end - length] == text[end - n + length : end]
            for length in range(1, LONGEST_PERIOD + 1)
            for n in [max(max_repeats * length, SHORTEST_LOOP)]
        )
        if expected or loops.met:
            break
    assert loops.met == expected


def test_without_a_limit_a_text_may_go_in_loops() -> None:
    loops = Loops(0)
    for _ in range(100):
        loops.push(7)
    assert not loops.met
