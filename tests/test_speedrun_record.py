"""The table of docs/speedrun.md is what the committed records give."""

from __future__ import annotations

import json
from pathlib import Path

from muomni.speedrun_record import SHOWN, header, record_line, record_name

DOCS = Path(__file__).resolve().parents[1] / "docs"


def made(**changes: object) -> dict[str, object]:
    figures = [
        {"name": "asr.char_error_rate", "value": 0.3149, "baseline": 0.848},
        {"name": "talker.text_used", "value": 0.61649, "baseline": 0.0},
    ]
    return {
        "date": "2026-12-01", "size": "nano", "data": "embedded", "minutes": 30.0, "seconds": 1_740.0, "calls": 1,
        "device": "CPU, 2 cores", "commit": "abc1234", "figures": figures,
    } | changes  # fmt: skip


def test_a_record_is_one_row_with_every_column() -> None:
    line = record_line(made())
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:6] == ["2026-12-01", "nano", "embedded", "30 (29.0)", "CPU, 2 cores", "abc1234"]
    assert cells[7] == "31.5 (84.8)"
    assert cells[-1] == "0.616"
    assert cells.count("not measured") == len(SHOWN) - 2
    assert len(cells) == header()[0].count("|") - 1 == header()[1].count("|") - 1
    assert "30 (29.0), in 2 calls" in record_line(made(calls=2))
    assert record_name(made()) == "2026-12-01_nano_cpu-2-cores_abc1234.json"


def test_the_table_of_the_page_is_what_the_records_give() -> None:
    records = [json.loads(path.read_text()) for path in sorted((DOCS / "speedrun").glob("*.json"))]
    lines = (DOCS / "speedrun.md").read_text().splitlines()
    start = lines.index(header()[0])
    end = lines.index("", start)
    assert lines[start:end] == [*header(), *map(record_line, records)]


def test_a_committed_record_has_the_name_it_gives() -> None:
    for path in (DOCS / "speedrun").glob("*.json"):
        assert path.name == record_name(json.loads(path.read_text()))
