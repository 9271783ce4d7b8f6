"""docs/data.md names every set with its licence, as the adapters have them."""

import re
from pathlib import Path

from muomni.data import embedded
from muomni.data.sources import RECIPES, adapters
from muomni.data.splits import normalised, split_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_table_of_licences_is_that_of_the_adapters() -> None:
    rows = {
        cells[0].strip(" `"): [cell.strip() for cell in cells[1:]]
        for line in PAGE.splitlines()
        if line.startswith("| `") and len(cells := line.strip("|").split("|")) == 6
    }
    assert set(rows) == set(adapters())
    for name, adapter in adapters().items():
        title, stages, licence, size, recipes = rows[name]
        assert (title, stages.split()) == (adapter.title, list(adapter.stages))
        assert licence == adapter.licence + (f"; opt-in: {adapter.opt_in}" if adapter.opt_in else "")
        n_bytes = sum(package.n_bytes for package in adapter.packages)
        assert size == (f"{n_bytes / 1e6:,.1f}" if n_bytes else "")
        assert recipes.split() == [recipe for recipe, names in RECIPES.items() if name in names]


def test_the_page_has_figures_of_both_recipes() -> None:
    for recipe in RECIPES:
        assert re.search(rf"`{recipe}`.*\n\n\| kind \| split \| items", PAGE)


def test_the_committed_held_out_sentences_are_in_no_training_item_of_the_embedded_set() -> None:
    """tests/golden/held_out_speech.tsv: every held-out sentence of `full` and embedded, split and what is heard.

    A recorded one is held out by the hash of its words, a synthesised one with the conversation it was said in.
    """
    lines = (Path(__file__).resolve().parents[1] / "golden" / "held_out_speech.tsv").read_text().splitlines()
    listed = {text: split for split, _, text in (line.partition("\t") for line in lines)}
    assert len(listed) == len(lines) > 700 and set(listed.values()) == {"validation", "test"}
    for split in ("validation", "test"):
        assert all(
            listed[item.text] == split == split_of("speech", item.text) for item in embedded.SET.speech(split)
        )
    trained = {normalised(item.text) for item in embedded.SET.speech("train")}
    turns = (turn for talk in embedded.SET.conversations("train") for turn in talk.turns)
    read = {normalised(sentence) for turn in turns for sentence in re.split(r"(?<=[.?!])\s+", turn)}
    recorded = {item.text for split in ("validation", "test") for item in embedded.SET.speech(split)}
    assert not {normalised(text) for text in listed} & trained
    assert not {normalised(text) for text in set(listed) - recorded} & read
