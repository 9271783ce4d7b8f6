"""Text sources on small files in their packages' own formats: what is taken, cleaned, grouped and left out."""

import json
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from placed import dictionary, found, place

from muomni.data.sources import adapters, books, chitchat, dictd, prose, sisu
from muomni.data.sources.fetch import SourceError
from muomni.data.splits import split_of

TEXT_SETS = {
    "chitchat", "foldoc", "fortunes", "gcide", "jargon", "kjv", "moby-dick", "novels", "packages", "sotu", "wordnet",
}  # fmt: skip


def test_every_text_set_is_registered_under_its_name() -> None:
    assert {name for name, adapter in adapters().items() if "text" in adapter.stages} >= TEXT_SETS


def test_pieces_hold_every_word_in_order_and_no_more_than_their_size() -> None:
    chance = random.Random(0)
    for _ in range(200):
        parts = [
            " ".join(
                "x" * chance.randint(1, 12) + chance.choice(["", "", ".", ". A"])
                for _ in range(chance.randint(1, 90))
            )
            for _ in range(chance.randint(1, 12))
        ]
        cut = prose.pieces(parts, size=200)
        assert " ".join(cut).split() == " ".join(parts).split()
        assert all(len(piece) <= 200 for piece in cut)


def test_pieces_are_whole_paragraphs_then_lines_then_sentences_then_words() -> None:
    assert prose.pieces(["aaaa", "bbbb", "cccc"], size=10) == ["aaaa\n\nbbbb", "cccc"]
    assert prose.pieces(["a b\nc d\neeee ffff"], size=8) == ["a b\nc d", "eeee", "ffff"]
    assert prose.pieces(["Aa bb. Cc Mr. Dd ee. Ff."], size=13) == ["Aa bb.", "Cc Mr. Dd ee.", "Ff."]
    assert prose.pieces(["aaaa bbbb cccc"], size=9) == ["aaaa bbbb", "cccc"]


@pytest.mark.parametrize(
    ("wrapped", "expected"),
    [
        ("a cross-\nplatform game", "a cross-platform game"),
        ("nothing to do with it:--\nit was", "nothing to do with it:--it was"),
        ("ten -\n  twelve", "ten - twelve"),
        ("\u201cIt\u2019s\u201d\u00a0here\u2014co\u00adop\u2026\x02", '"It\'s" here--coop...'),
    ],
)
def test_a_wrapped_paragraph_becomes_one_plain_line(wrapped: str, expected: str) -> None:
    assert prose.unwrapped(wrapped) == expected


def conversation(*turns: str) -> dict[str, object]:
    return {"messages": [[{"text": turn}] for turn in turns]}


def test_all_clean_conversations_are_found_and_the_embedded_ones_are_the_first_of_them(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {f"id-{n}": conversation("Hi", f"Hello {n}", "Bye", "Bye") for n in range(30)}
    data |= {
        "short": conversation("Hi", "Hello", "Bye"),
        "link": conversation("Hi", "see www.x", "Bye", "Bye"),
        "same": conversation("Hi", "Hello 3", "Bye", "Bye"),
        "drunk": conversation("Hi", "I was drunk", "Bye", "Bye"),
    }
    place(chitchat.CONVERSATIONS, cache, {"dataset.json": json.dumps(data)})
    monkeypatch.setattr(chitchat, "MAX_BYTES", 10 * len("Hi\nHello 10\nBye\nBye"))
    items, embedded = found("chitchat", cache), chitchat.items(cache)
    assert len(items) == 30
    sizes = [len("\n".join(one.fields["turns"])) for one in items]
    assert sum(sizes[: len(embedded)]) <= chitchat.MAX_BYTES < sum(sizes[: len(embedded) + 1])
    assert [f"chitchat/{one['id']}" for one in embedded] == [one.id for one in items][: len(embedded)]
    assert [one["split"] for one in embedded] == [
        split_of("conversations", one.group) for one in items[: len(embedded)]
    ]


def test_addresses_of_one_year_are_one_group_without_applause_and_editors_brackets(cache: Path) -> None:
    speech = {
        "text": " Fellow\u2014citizens, [the States] agree. (Applause.) He said &quot;no&quot; [p.2]. Thank you."
    }
    names = ("1961_john_f_kennedy_d", "1961_dwight_d_eisenhower_r", "1790_george_washington_n")
    place(
        books.SOTU,
        cache,
        {f"package/data/{name}.json": json.dumps(speech) for name in names}
        | {"package/data/meta.json": "[]"},
    )
    items = found("sotu", cache)
    assert [one.id for one in items] == [
        "sotu/1790-george-washington-n/0", "sotu/1961-dwight-d-eisenhower-r/0", "sotu/1961-john-f-kennedy-d/0"
    ]  # fmt: skip
    assert items[1].group == items[2].group != items[0].group
    assert items[0].fields["text"] == 'Fellow--citizens, the States agree. He said "no" . Thank you.'


def test_verses_become_paragraphs_of_their_chapter_without_marks(cache: Path) -> None:
    verses = {
        "Genesis 1:5": "And God called the light Day.",
        "Genesis 1:6": "# And God said, [it was] good.",
        "Genesis 1:7": "And God made the firmament.",
        "1 John 2:1": "My little children,",
    }
    place(books.KJV, cache, {"package/json/verses-1769.json": json.dumps(verses)})
    items = found("kjv", cache)
    assert [one.id for one in items] == ["kjv/genesis-1/0", "kjv/1-john-2/0"]
    assert items[0].fields["text"] == (
        "And God called the light Day.\n\nAnd God said, it was good. And God made the firmament."
    )


def test_a_long_chapter_is_one_group_of_pieces_in_the_books_order(cache: Path) -> None:
    chapters = {10: "Ten.", 2: "\n\n".join("whale " * 100 for _ in range(10)), 1: "A *note.*"}
    place(
        books.MOBY_DICK,
        cache,
        {f"package/data/chapter_{n}.json": json.dumps({"title": "T", "text": t}) for n, t in chapters.items()}
        | {
            "package/data/epilogue.json": json.dumps({"text": "The drama's done."}),
            "package/data/contents.json": "[]",
        },
    )
    items = found("moby-dick", cache)
    assert [one.group for one in items] == [
        "moby-dick/chapter-1", *["moby-dick/chapter-2"] * 4, "moby-dick/chapter-10", "moby-dick/epilogue"
    ]  # fmt: skip
    assert items[0].fields["text"] == "A note."


NOVEL = """% SiSU 4.0.0

@title: Alice

@rights:
 :license: Public Domain

:A~ @title @creator

CHAPTER I - Down the Rabbit-Hole

`I'm sure _{I}_ shan't,'~^ she said to the WAISTCOAT-
POCKET, and {the link}http://example.org _went_ on.~{ a note }~

^~ A note of its own
on two lines.

*   *   *   * ~#

poem{

How doth the little
  crocodile

CHAPTER IX

}poem

% a comment
CHAPTER II.

_1 First line<br>
second line

1~ An Afterword

THE END
"""


def test_novels_lose_their_markup_and_are_grouped_by_chapter(cache: Path) -> None:
    place(sisu.SAMPLES, cache, {f"samples/minimal/{name}.sst": NOVEL for name in sisu.NOVELS})
    items = found("novels", cache)
    alice = [one for one in items if "alice" in one.id]
    assert len(items) == len(sisu.NOVELS) * len(alice)
    assert [one.id for one in alice] == [f"novels/alices-adventures-in-wonderland/{n}/0" for n in (0, 1)]
    assert [one.fields["text"] for one in alice] == [
        "'I'm sure I shan't,' she said to the WAISTCOAT-POCKET, and the link went on.\n\n"
        "How doth the little\ncrocodile\n\nCHAPTER IX",
        "First line\nsecond line",
    ]


def test_only_novels_named_as_public_domain_are_read(cache: Path) -> None:
    place(sisu.SAMPLES, cache, {"samples/minimal/little_brother.cory_doctorow.sst": NOVEL})
    with pytest.raises(SourceError, match="has no alices_adventures"):
        found("novels", cache)


def test_dictionary_entries_come_once_in_the_files_order(tmp_path: Path) -> None:
    entries = {"00-database-info": "about", "zebra": "z\n" * 40, "a,b": "first\n", "c": "größer\n"}
    for name, content in dictionary("d", entries).items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert list(dictd.entries(tmp_path, "d")) == ["z\n" * 40, "first\n", "größer\n"]
    # The example of dictd's manual page: 64 * 1 + 0.
    assert dictd.number("BA") == 64


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({"d.index": "a\t!\tB\n"}, "no number"),
        ({"d.index": "a\tA\tZZ\n"}, "shorter than its index"),
        ({"d.dict.dz": "no gzip"}, "cannot be unpacked"),
    ],
)
def test_a_broken_dictionary_is_one_line(broken: dict[str, str], expected: str, tmp_path: Path) -> None:
    for name, content in (dictionary("d", {"a": "entry"}) | broken).items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SourceError, match=expected):
        list(dictd.entries(tmp_path, "d"))
    with pytest.raises(SourceError, match="no dictionary e"):
        list(dictd.entries(tmp_path, "e"))
