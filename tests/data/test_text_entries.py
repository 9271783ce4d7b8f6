"""Entries of dictionaries, WordNet, package descriptions and sayings: read as their formats say, and made prose."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from placed import dictionary, found, place, texts

from muomni.data.sources import debian, descriptions, dictionaries, fetch, fortunes, glosses
from muomni.data.sources.fetch import Package, SourceError
from muomni.data.splits import split_of

ABUNDANCE = """Abundance \\A*bun"dance\\ ([.a]*b[u^]n"dans), n. [OE.
   (h)abundaunce, F. abondance, L. abundantia, fr.
   abundare. See {Abound}.]
   An overflowing fullness; ample sufficiency; great plenty:
   -- strictly applicable to quantity only." --Sir P. Raleigh. Used
   rarely. --Shak. -- A*bun"dant*ly, adv.
   [1913 Webster] Abundant

         It is lamentable to remember what abundance of noble
         blood hath been shed.                    --Raleigh.
   [1913 Webster]

   {Horn of abundance} (Myth.), the horn of a caf['e] goat,
      {Amalthea}.
      [1913 Webster]

   2. the property of a more than adequate quantity or supply.
      [WordNet 1.5]

   Syn: Exuberance; plenteousness.
"""


def test_gcide_definitions_lose_heads_quotations_synonyms_and_sources(cache: Path) -> None:
    entries = {
        "abundance": ABUNDANCE,
        "caloric": 'Caloric \\Ca*lor"ic\\, a.\n   See {Calorific}.\n   [1913 Webster]\n',
        "calotte": 'Calotte \\Ca*lotte"\\, Callot \\Cal"lot\\, n. [F., a sort\n   of [flat] cap.] (Dress)\n'
        "   1. a close cap without visor or brim. It is worn by the clergy.\n\n   2. A [sort\n",
    }
    place(dictionaries.GCIDE, cache, dictionary("gcide", entries))
    items = found("gcide", cache)
    assert [one.group for one in items] == ["word abundance", "word calotte"]
    assert items[0].fields["text"] == (
        "Abundance: An overflowing fullness; ample sufficiency; great plenty: -- strictly "
        'applicable to quantity only." Used rarely.'
        "\n\nHorn of abundance, the horn of a café goat, Amalthea."
    )
    assert items[1].fields["text"] == "Calotte: a close cap without visor or brim. It is worn by the clergy."
    assert not items[0].fields["technical"]


FOLDOC = """mail server
mail hub

   1. <tool, messaging> A program that distributes {electronic
   mail}, e.g. by Joe <joe@example.org> or over {WWW}.

   {Home (http://example.org/mail)}.

       10 print "code of an example"

   ["Mail", A. Author, 1977].

   (1995-05-05)
"""


def test_articles_on_computing_lose_categories_links_code_references_and_dates(cache: Path) -> None:
    copied = (
        "hacker\n\n   <person> A person who enjoys exploring programmable systems.\n\n   [{Jargon File}]\n"
    )
    place(
        dictionaries.FOLDOC, cache, dictionary("foldoc", {"mail server,mail hub": FOLDOC, "hacker": copied})
    )
    (item,) = found("foldoc", cache)
    assert item.fields == {
        "text": "mail server, mail hub: 1. A program that distributes electronic mail, e.g. by Joe or over WWW.",
        "technical": True,
    }


def test_hackers_words_lose_pronunciation_tables_and_broken_links(cache: Path) -> None:
    entry = (
        "BUAF\n //, n.\n\n    [abbreviation, from alt.fan.warlord] Big Ugly ASCII Font \u2014 see {\n    warlording}"
        " for more of it.\n\n    \u250c\u2500\u2500\u2510\n    \u2502words foo\u2502\n\n      code indented\n"
    )
    place(dictionaries.JARGON, cache, dictionary("jargon", {"buaf": entry}))
    assert texts("jargon", cache) == ["BUAF: Big Ugly ASCII Font -- see warlording for more of it."]


NOUNS = """  1 This software and database is being provided to you
00001740 05 n 02 umbrella_bird 0 Cephalopterus 0 000 | a tropical_bird; black; "an umbrella bird sang"; "it flew"
00001930 27 n 01 gold 0 001 @ 00001740 n 0000 | soft yellow metal
00002000 18 n 01 Ada_Lovelace 0 000 | English mathematician (1815-1852)
00002100 15 n 01 Paris 0 000 | the capital of France
00002200 03 n 01 gold 1 000 | great wealth
00002300 05 n 01 black_bird 0 000 | A tropical bird, black
00002400 18 n 01 lout 0 000 | (ethnic slur) offensive name for someone
"""
INDEX = """  1 This software and database is being provided to you
ada_lovelace n 1 0 1 0 00002000
black_bird n 1 0 1 0 00002300
gold n 2 1 @ 2 1 00002200 00001930
lout n 1 0 1 0 00002400
paris n 1 0 1 0 00002100
umbrella_bird n 1 0 1 0 00001740
"""


def wordnet(cache: Path, nouns: str = NOUNS) -> None:
    """WordNet with a few nouns, a verb, an adjective and no adverb."""
    place(
        glosses.WORDNET,
        cache,
        {
            "data.noun": nouns, "index.noun": INDEX,
            "data.verb": "00000100 36 v 01 gold 0 000 01 + 02 00 | cover with gold  \n"
                         "00000200 36 v 01 gild 0 000 01 + 02 00 | decorate with gold  \n",
            "index.verb": "gold v 1 0 1 0 00000100\ngild v 1 0 1 0 00000200\n",
            "data.adj": "00000300 00 a 01 golden(a) 0 000 | made of gold; \"golden coins\"\n",
            "index.adj": "golden a 1 0 1 0 00000300\n", "data.adv": "", "index.adv": "",
        },
    )  # fmt: skip


def test_glosses_become_texts_and_each_words_first_sense_a_question(cache: Path) -> None:
    wordnet(cache)
    items = found("wordnet", cache)
    assert [one.fields["text"] for one in items if one.kind == "texts"] == [
        'umbrella bird, Cephalopterus: a tropical bird; black; "an umbrella bird sang"; "it flew"',
        "gold: soft yellow metal",
        "Ada Lovelace: English mathematician (1815-1852)",
        "Paris: the capital of France",
        "gold: great wealth",
        "gold: cover with gold",
        "gild: decorate with gold",
        'golden: made of gold; "golden coins"',
    ]
    turns = {one.group: one.fields["turns"] for one in items if one.kind == "conversations"}
    assert {group: pair[1] for group, pair in turns.items()} == {
        "word umbrella bird": "A tropical bird; black.",
        "word gold": "Great wealth.",
        "word ada lovelace": "English mathematician (1815-1852).",
        "word paris": "The capital of France.",
        "word gild": "Decorate with gold.",
        "word golden": "Made of gold.",
    }
    assert turns["word paris"][0] == "What is Paris?"
    assert turns["word ada lovelace"][0] == "Who was Ada Lovelace?"
    assert turns["word umbrella bird"][0] in (
        "What is an umbrella bird?",
        'What does "umbrella bird" mean?',
    )
    assert "a gold" not in turns["word gold"][0]


def test_a_word_is_in_one_split_as_text_and_as_question(cache: Path) -> None:
    wordnet(cache)
    items = found("wordnet", cache)
    texts = {one.id: one for one in items if one.kind == "texts"}
    asked = [one for one in items if one.kind == "conversations"]
    assert asked
    for one in asked:
        text = texts[one.id.removesuffix("/question")]
        assert split_of(one.kind, one.group) == split_of(text.kind, text.group)
    assert len({one.group for one in items if "gold:" in one.fields.get("text", "")}) == 1


@pytest.mark.parametrize(
    ("word", "article"),
    [
        ("animal", "an"), ("unicorn", "a"), ("hour", "an"), ("horse", "a"), ("usher", "an"), ("user", "a"),
        ("euphonium", "a"), ("urn", "an"), ("uranium mine", "a"), ("one-spot", "a"), ("onion", "an"),
        ("unimportant thing", "an"),
    ],
)  # fmt: skip
def test_articles_go_by_sound(word: str, article: str) -> None:
    synset = glosses.Synset(part="noun", offset="1", file=5, words=(word,), gloss="a thing", examples="")
    verb = glosses.Synset(part="verb", offset="1", file=29, words=(word,), gloss="do a thing", examples="")
    assert glosses.question(synset) in (f"What is {article} {word}?", f'What does "{word}" mean?')
    assert glosses.question(verb).endswith((f"mean to {word}?", f'"{word}" mean?'))


def test_a_broken_synset_is_one_line(cache: Path) -> None:
    wordnet(cache, nouns="00001740 05 n zz word\n")
    with pytest.raises(SourceError, match=r"data\.noun: '00001740 05 n zz word' is no synset"):
        found("wordnet", cache)


def test_a_word_is_one_group_in_every_dictionary(cache: Path) -> None:
    wordnet(cache)
    article = "Gold\n\n   <job> A standard of early printers for colours, of which nobody knows much.\n"
    place(dictionaries.FOLDOC, cache, dictionary("foldoc", {"gold": article}))
    (item,) = found("foldoc", cache)
    assert item.group in {one.group for one in found("wordnet", cache)}


DESCRIPTIONS = """Package: 0ad
Description-md5: 1
Description-en: Real-time strategy game
 0 A.D. is a free, open-source, cross-
 platform game of ancient warfare.
 .
 It can:
  * build
  * fight in
    battles
 .
   $ 0ad --help

Package: 0ad-data
Description-md5: 2
Description-en: Real-time strategy game (data files)
 0 A.D. is a free, open-source, cross-
 platform game of ancient warfare.
 .
 This package contains the main data files required by it, and nothing else.

Package: 0ad-data
Description-md5: 3
Description-en: Another version
 A description of another version of the same package, which is long enough.

Package: 0ad-old
Description-md5: 4
Description-en: transitional package
 This is a transitional package. It can be removed safely from any machine.

Package: tiny
Description-md5: 5
Description-en: Too short
 Short.
"""


def test_descriptions_are_given_once_and_parts_of_a_program_are_one_group(cache: Path) -> None:
    folder = cache / f"debian-descriptions-{debian.SUITE}"
    folder.mkdir()
    (folder / "Translation-en").write_text(DESCRIPTIONS)
    game, data = found("packages", cache)
    assert game.fields == {
        "text": "0ad: Real-time strategy game\n\n0 A.D. is a free, open-source, cross-platform game of ancient warfare."
        "\n\nIt can:\n- build\n- fight in battles".replace("- ", "* "),
        "technical": True,
    }
    assert data.fields["text"] == (
        "0ad-data: Real-time strategy game (data files)\n\n"
        "This package contains the main data files required by it, and nothing else."
    )
    assert game.group == data.group


def test_descriptions_are_fetched_once_with_lists_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], *, cwd: Path, what: str) -> bytes:
        ran.append(command)
        if command[-1] == "update":
            (cwd / "lists" / "mirror_main_i18n_Translation-en.lz4").write_bytes(b"packed")
        return b"Package: x\n"

    monkeypatch.setattr(descriptions, "run", run)
    assert descriptions.index(tmp_path) == descriptions.index(tmp_path)
    assert descriptions.index(tmp_path).read_text() == "Package: x\n"
    assert [command[0].rpartition("/")[2] for command in ran] == ["apt-get", "apt-helper"]
    assert "Acquire::Languages=en" in ran[0]
    assert (
        f"Dir::State::lists={(tmp_path / f'debian-descriptions-{debian.SUITE}' / 'lists').resolve()}"
        in ran[0]
    )


def test_a_package_of_non_free_is_downloaded_with_lists_of_its_own(tmp_path: Path) -> None:
    package = Package(
        registry="debian-non-free", name="p", version="1", sha256="0", licence="x", attribution="y", gives="z"
    )
    update, download = fetch._commands(package, tmp_path)
    assert update[-1] == "update"
    assert download[-2:] == ["download", "p=1"]
    line = (tmp_path / "apt" / "sources.list").read_text()
    assert line == f"deb [signed-by={debian.KEYRING}] {debian.MIRROR} {debian.SUITE} non-free\n"
    assert "Dir::Etc::SourceParts=-" in update


SAYINGS = """A compliment is something like a kiss through a veil, and it goes on to
a second line.
\t\t-- Victor Hugo, "A Book with a very long title that does not fit
\t\t   its line"
%
<james> abuse me.  I'm so lame I sent a bug report
<netgod> sel:  dont send the first one, start with #2
%
He was so drunk that he could not remember what he said at all.
%
A compliment is something like a kiss through a veil, and it goes on to
a second line. -- Victor Hugo, "A Book with a very long title that does not fit its line"
%
 /\\_/\\  ( o.o )  > ^ <   |__|  |__| ====== +++++
%
Short.
"""


def test_sayings_are_unwrapped_once_each_and_clean(cache: Path) -> None:
    folder = "usr/share/games/fortunes"
    linux = "Linux is a kernel, as everyone here will tell you.\n%\n"
    place(fortunes.MINIMAL, cache, {f"{folder}/literature": SAYINGS, f"{folder}/literature.dat": b"\x00"})
    place(
        fortunes.FORTUNES,
        cache,
        {f"{folder}/linux": linux, f"{folder}/ethnic": "A joke about a people.\n" * 2},
    )
    items = found("fortunes", cache)
    assert [(one.fields["text"], one.fields["technical"]) for one in items] == [
        (
            "A compliment is something like a kiss through a veil, and it goes on to a second line.\n"
            '-- Victor Hugo, "A Book with a very long title that does not fit its line"',
            False,
        ),
        (
            "<james> abuse me. I'm so lame I sent a bug report\n<netgod> sel: dont send the first one, start with #2",
            False,
        ),
        ("Linux is a kernel, as everyone here will tell you.", True),
    ]
