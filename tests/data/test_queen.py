"""A game's recorded dialogue from a small file in its format: what each recording says, who, and how fast."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parent))
from placed import found, place

from muomni.data.admit import Admitted, Refused, admit
from muomni.data.items import SAMPLE_RATE, SpeechItem
from muomni.data.media import MediaError, read_audio
from muomni.data.sources import RECIPES, adapters, queen
from muomni.data.sources.fetch import SourceError
from muomni.data.sources.queen_lines import Line, lines, members
from muomni.data.splits import split_of


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "big", signed=value < 0) for value in values)


def text(words: str, *, at: int = 0, align: int = 2) -> bytes:
    """A string of the game at a place: its length, itself, and what fills it up; an empty one is not filled up."""
    whole = bytes([len(words)]) + words.encode("cp1252")
    return whole + bytes(-(at + len(whole)) % align if words else 0)


def strings(*words: str, at: int) -> bytes:
    """Strings one after the other from an even place on."""
    whole = b""
    for one in words:
        whole += text(one, at=at + len(whole))
    return whole


def table(lines: dict[int, str], *, at: int) -> bytes:
    """A person's lines: two numbers, the second the node's, and the text, filled up to four bytes."""
    whole = b""
    for node, words in lines.items():
        whole += numbers(0, node)
        whole += text(words, at=at + len(whole), align=4)
    return whole


def dialogue(talk: int, joe: dict[int, str], other: dict[int, str], again: tuple[str, str]) -> bytes:
    """A .DOG file of two levels; the first is negative: it cannot be left."""
    joe_at = 32 + 2 * 96
    of_joe = table(joe, at=joe_at)
    other_at = joe_at + len(of_joe)
    of_other = table(other, at=other_at)
    again_at = other_at + len(of_other)
    head = numbers(-2, 99, talk, len(joe), len(other), *[0] * 6, other_at, 0, again_at)
    tree = bytes(32 - len(head) + 2 * 96)
    return bytes(20) + head + tree + of_joe + of_other + strings(*again, at=again_at)


def record(thing: int, *, pictures: int = 0, moves: int = 0, origin: int = 0, frames: int = 0) -> bytes:
    """A record of a cutaway, with two objects and as many frames as it has when it moves."""
    what = [thing, 0, 0, 0, pictures, moves, *[0] * 6, origin, *[0] * 4]
    return numbers(*what, 2, 7, 8) + (numbers(*([1] * 10 * frames), -2) if frames else b"")


def cutaway(records: list[tuple[bytes, str]]) -> bytes:
    whole = b"".join(one for one, _ in records)
    said = strings("*FL", *(words for _, words in records), at=12 + len(whole))
    return bytes(20) + numbers(0, len(records), 0, 0, 12 + len(whole), 0) + whole + said


def names(people: list[int]) -> dict[str, bytes]:
    """QUEEN.JAS and QUEEN2.JAS of three objects, two descriptions, three names, one room and 12 verbs."""
    images = [n + 1 for n in range(3)]
    for n, image in zip(people, (-3, -4), strict=False):
        images[n - 1] = image
    objects = b"".join(numbers(*[0] * 7, image) for image in images)
    said = ["It's open*02", "Wow...*03What a bone!*24", "hatch", "knife", "bone", "X11", *["use"] * 12]
    said += ["I can't move it*03", *["-"] * 39, "files"]
    return {
        "QUEEN.JAS": bytes(20) + numbers(1, 3, 3, 2) + objects,
        "QUEEN2.JAS": "\r\n".join(said).encode(),
    }


def container(files: dict[str, bytes]) -> bytes:
    """queen.1c."""
    start, entries, whole = 15 + 21 * len(files), b"", b""
    for name, content in files.items():
        entries += name.encode().ljust(12, b"\0") + b"\1"
        entries += (start + len(whole)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        whole += content
    return b"QTBL" + b"CEM10\0\0\0\1" + len(files).to_bytes(2, "big") + entries + whole


STORY = {
    "AND1.DOG": dialogue(
        2,
        {0: "*FRGood day.*15", 0x1F: "Typical of you.*04*03"},
        {1: "You again?*02", 0xEA6: "Ha ha!*XY00(237,112)You, little weasel!*02"},
        ("Yes, Joe?*04", "Hello!"),
    ),
    "APE.DOG": dialogue(3, {6: "Are you an ape?*01"}, {6: "Unga!*01"}, ("0", "0")),
    "C9A.CUT": cutaway(
        [
            (record(0), "Here I go.*03And there!*24"),
            (record(2), "*FLMe too."),
            (record(1, moves=1, frames=3), "*"),
            (record(-1), "Dark in here*14"),
            (record(0, pictures=1, moves=1, frames=1), "*"),
            (record(1, moves=1, origin=2), "*"),
            (record(-2, moves=1), "Aha!"),
            (record(3), "Not me!"),
        ]
    ),
    **names([2, 3]),
}
SAID = {
    "02SSSSJ2": Line("Good day.", "joe"),
    "02001FJ1": Line("Typical of you.", "joe"),
    "020001P1": Line("You again?", "and"),
    "020EA6P1": Line("Ha ha!", "and"),
    "020EA6P2": Line("You, little weasel!", "and"),
    "02XXXXP1": Line("Yes, Joe?", "and"),
    "02XXXXJ1": Line("Hello!", "joe"),
    "030006J1": Line("Are you an ape?", "joe"),
    "030006P1": Line("Unga!", "ape"),
    "C9A__011": Line("Here I go.", "joe"),
    "C9A__012": Line("And there!", "joe"),
    "C9A__022": Line("Me too.", "others"),
    "C9A__041": Line("Dark in here", "joe"),
    "C9A__071": Line("Aha!", "others"),
    "C9A__081": Line("Not me!", "others"),
    "JOE00011": Line("I can't move it", "joe"),
    "JOE00411": Line("It's open", "joe"),
    "JOE00421": Line("Wow...", "joe"),
    "JOE00422": Line("What a bone!", "joe"),
}
WITHOUT_A_LINE = (
    "02SSSSJ1",
    "020006P1",
    "020001P2",
    "C9A__013",
    "C99A_011",
    "1000SSSS",
    "JOE00431",
    "ROCKPAKS",
)


def tone(seconds: float = 1.0, *, rate: int = queen.STATED_RATE, pitch: float = 400.0) -> bytes:
    """An MP3 of a tone in silence, as its header has it."""
    time = np.arange(round(rate * seconds)) / rate
    quiet = np.zeros(rate // 4)
    buffer = io.BytesIO()
    soundfile.write(
        buffer, np.concatenate([quiet, 0.3 * np.sin(2 * np.pi * pitch * time), quiet]), rate, format="MP3"
    )
    return buffer.getvalue()


def test_every_recording_has_its_part_of_its_line_and_its_speaker() -> None:
    files = STORY | {f"{name}.SB": b"sound" for name in (*SAID, *WITHOUT_A_LINE)}
    assert dict(lines(members(container(files)))) == SAID


def test_another_or_a_cut_file_is_refused() -> None:
    whole = container(STORY)
    assert bytes(members(whole)["C9A.CUT"]) == STORY["C9A.CUT"]
    with pytest.raises(SourceError, match="expected b'QTBL'"):
        members(b"QTBA" + whole[4:])
    with pytest.raises(SourceError, match=r"QUEEN2\.JAS ends at byte"):
        members(whole[:-1])
    cut = STORY | {"C9A.CUT": STORY["C9A.CUT"][:200]}
    with pytest.raises(SourceError, match="a file of 180 bytes goes on beyond its end"):
        dict(lines(members(container(cut))))


@pytest.mark.parametrize(
    ("line", "heard"),
    [
        ("The answer is quite simple Mr. King.", "the answer is quite simple mister king"),
        ("...THE MOST POWERFUL DEVICE!", "the most powerful device"),
        ("So what if they've got IQs less than 50?", "so what if they've got iqs less than fifty"),
        ("The Model X7 Tubes, <gulp> Dr. Ironstein", "the model x seven tubes doctor ironstein"),
        ("Super Soldier Treatment^_", "super soldier treatment"),
        ("(sigh)", ""),
        ("He came in 1844.", ""),
        ("At 19:00 hours", ""),
        ("2B or not", ""),
        ("Hmmm, nothing here.", ""),
        ("&#($!!, he got away!", ""),
        ("Well Ms. Russel", ""),
    ],
)
def test_a_line_becomes_what_is_heard_or_nothing(line: str, heard: str) -> None:
    assert queen.said(line) == heard


def test_a_recording_plays_faster_than_its_header_says() -> None:
    heard = read_audio(queen.flac_of(tone(4.0, pitch=400.0), "one two three four five"))
    # What is played 11,840 / 11,025 times as fast is so much shorter, here 4,400 samples, and higher. MP3 smears ends.
    speed = 11_840 / 11_025
    assert len(heard) == pytest.approx(4 * SAMPLE_RATE / speed + 2 * 1_280, abs=2_000)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert spectrum.argmax() * SAMPLE_RATE / len(heard) == pytest.approx(400 * speed, abs=2)


@pytest.mark.parametrize(
    ("recording", "reason"),
    [
        (b"no sound at all", "is not a readable recording"),
        (tone(rate=16_000), "16000 Hz"),
        (tone(pitch=0.0), "is silent"),
    ],
)
def test_a_recording_that_cannot_be_used_is_bad(recording: bytes, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        queen.flac_of(recording, "one two three")


def test_clips_are_admitted_once_with_words_and_in_the_split_of_their_text(cache: Path) -> None:
    # Ten letters a second, no two alike.
    sounds = {
        name: tone(len(line.text) / 10 + 0.01 * number) for number, (name, line) in enumerate(SAID.items())
    }
    # The same recording under another name, and one far longer than its line.
    sounds["02XXXXJ1"], sounds["C9A__071"] = sounds["020001P1"], tone(4.0)
    files = STORY | {f"{name}.SB": sound for name, sound in sounds.items()}
    place(queen.GAME, cache, {"usr/share/scummvm/flight-of-the-amazon-queen/queen.1c": container(files)})
    items = {one.id.removeprefix("queen/"): one for one in found("queen", cache)}
    # A gorilla's grunts are no words.
    assert set(items) == set(SAID) - {"02XXXXJ1", "030006P1"}
    admitted = {name: admit(one) for name, one in items.items()}
    slow = admitted.pop("C9A__071")
    assert isinstance(slow, Refused) and not slow.bad and slow.reason == "slower than its line is spoken"
    for name, one in admitted.items():
        assert isinstance(one, Admitted) and isinstance(item := one.item, SpeechItem)
        assert item.text == re.sub(r"[^a-z' ]", "", SAID[name].text.lower())
        assert item.raw_text == SAID[name].text and item.speaker == f"queen-{SAID[name].speaker}"
        assert item.split == split_of("speech", item.text) and not item.synthetic


def test_the_set_is_of_no_recipe_and_asks_first() -> None:
    assert adapters()["queen"].opt_in
    assert not any("queen" in sets for sets in RECIPES.values())
