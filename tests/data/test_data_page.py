"""docs/data.md names every set with its licence, as the adapters have them."""

import re
from pathlib import Path

from muomni.data.sources import RECIPES, adapters

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
