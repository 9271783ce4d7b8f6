"""What the README says about sizes is what the configurations give."""

import re
from pathlib import Path

from muomni import recipes
from muomni.config import SIZES
from muomni.models.omni import parameter_table

README = Path(__file__).resolve().parents[1] / "README.md"


def test_parameter_table_is_the_one_the_configurations_give() -> None:
    tables = {size: dict(parameter_table(recipes.model(size))) for size in SIZES}
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", README.read_text(), re.MULTILINE)
    shown = {part: [int(n.replace(",", "")) for n in counts] for part, *counts in rows}
    expected = {
        part: [tables[size][part] for size in SIZES] for part in tables["nano"] if tables["nano"][part]
    }
    assert shown == expected
