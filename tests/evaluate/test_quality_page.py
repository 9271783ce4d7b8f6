"""The tables of docs/quality.md are those of the committed figures."""

import json
from pathlib import Path

import pytest

from muomni.evaluate.markdown import table

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("path", sorted((DOCS / "quality").glob("*.json")), ids=lambda path: path.stem)
def test_every_figure_stands_in_the_page(path: Path) -> None:
    page = (DOCS / "quality.md").read_text(encoding="utf-8")
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    assert len(figures) > 20
    # The header too: the rows are one table.
    assert "\n".join(table(figures)) in page


def test_a_row_says_value_interval_baseline_and_n() -> None:
    figure = {
        "what": "speech: errors", "value": 0.1234, "interval": [0.1, 0.2], "baseline": 0.5, "baseline_name": "chance",
        "n": 7, "unit": "errors/word", "better": "lower", "beats_baseline": True,
    }  # fmt: skip
    assert table([figure])[-1] == (
        "| speech: errors (less is better) | **12.3 %** [10.0 %, 20.0 %] | 50.0 % (chance) | 7 |"
    )
