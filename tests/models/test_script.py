"""What the Talker is told of a text: characters around a place, waiting, and a text that is still being written."""

import torch

from muomni.models.script import (
    AFTER,
    BEFORE,
    MAX_WAITED,
    WINDOW,
    Reading,
    Script,
    Text,
    as_characters,
    waited,
    windows,
)

SPELLED = [b"The", b" ca", b"", b"t \xc3", b"\xa9t\xc3\xa9."]


def _script() -> Script:
    torch.manual_seed(0)
    script = Script(6, 16)
    torch.nn.init.normal_(script.characters)
    return script


def _text() -> Text:
    torch.manual_seed(1)
    return Text.of(torch.randn(5, 6), torch.randn(5, 6), SPELLED)


def test_characters_are_bytes_in_lower_case_and_belong_to_their_subwords() -> None:
    text = _text()
    assert bytes((text.characters - 1).tolist()).decode() == "the cat été."
    assert text.owners.tolist() == [0] * 3 + [1] * 3 + [3] * 3 + [4] * 5
    assert len(as_characters(b"")) == 0


def test_windows_are_the_characters_around_a_place_and_nothing_outside() -> None:
    characters = as_characters(b"abcdefghijkl")
    found = windows(characters, torch.arange(13))
    assert found.shape == (13, WINDOW)
    for place, row in enumerate(found.tolist()):
        said = "".join(chr(c - 1) if c else "_" for c in row)
        padded = "_" * BEFORE + "abcdefghijkl" + "_" * (AFTER + 1)
        assert said == padded[place : place + WINDOW] and len(said) == WINDOW


def test_waiting_counts_frames_at_one_place() -> None:
    assert waited(torch.tensor([0, 0, 0, 2, 3, 3, 9])).tolist() == [0, 1, 2, 0, 0, 1, 0]
    assert waited(torch.zeros(40, dtype=torch.int64)).tolist() == [min(i, MAX_WAITED) for i in range(40)]


@torch.no_grad()
def test_a_condition_is_of_the_subword_the_characters_and_the_waiting() -> None:
    script, text = _script(), _text()
    places = torch.tensor([0, 4, 4, 13, 14])
    found = script(*text.at(places))
    for i, (place, subword, waits) in enumerate([(0, 0, 0), (4, 1, 0), (4, 1, 1), (13, 4, 0), (14, None, 0)]):
        expected = script.waiting[waits].clone()
        if subword is not None:
            expected += text.states[subword] @ script.from_state.weight.T
            expected += text.embeds[subword] @ script.from_embed.weight.T
        for offset in range(-BEFORE, AFTER + 1):
            inside = 0 <= place + offset < 14
            expected += script.characters[
                offset + BEFORE, int(text.characters[place + offset]) if inside else 0
            ]
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_character_never_trained_on_says_nothing() -> None:
    torch.manual_seed(0)
    script, text = Script(6, 16), _text()
    other = Text.of(text.states, text.embeds, [b"xyz", b"123", b"", b"q?\xc3", b"\xa9!!!!"])
    places = torch.arange(15)
    assert torch.equal(script(*text.at(places)), script(*other.at(places)))


@torch.no_grad()
def test_a_text_that_is_still_written_is_said_like_a_whole_one() -> None:
    script, text = _script(), _text()
    steps = [0.3, 0.2, 1.7, 0.0, 2.1, 1.0, 0.4, 0.4, 3.0, 1.5, 2.0, 1.0, 0.4, 0.2, 0.9]
    place, places = 0.5, []
    for step in steps:
        places.append(int(place))
        place += step
    assert place > 15 and places[-1] == 14
    whole = script(*text.at(torch.tensor(places)))
    reading, said, left = Reading(script), [], list(steps)
    assert not reading.ready

    def say() -> None:
        while reading.ready:
            # What is told of must be known: nothing that comes later may change it.
            assert reading._whole or int(reading._place) + AFTER < len(reading._spelled)
            said.append(reading.condition())
            reading.advance(left.pop(0))

    for state, embed, spelled in zip(text.states, text.embeds, SPELLED, strict=True):
        reading.add(state, embed, spelled)
        say()
        assert not reading.over
    assert 0 < len(said) < len(steps)
    reading.end()
    say()
    assert reading.over and not reading.ready and not left
    torch.testing.assert_close(torch.cat(said), whole, atol=1e-6, rtol=1e-6)
    # The codes of the last frame become whole behind it: what it is told then is the end.
    torch.testing.assert_close(
        reading.condition()[0], script(*text.at(torch.tensor([14])))[0], atol=1e-6, rtol=1e-6
    )


@torch.no_grad()
def test_an_empty_text_is_over_once_its_end_is_past() -> None:
    reading = Reading(_script())
    reading.end()
    assert reading.ready
    reading.condition()
    reading.advance(1.0)
    assert reading.over and not reading.ready
