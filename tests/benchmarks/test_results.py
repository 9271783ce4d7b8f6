"""From rows to results: the log survives a crash, the dispatch table follows the rows, and so does the summary."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from muomni_kernels import dispatch

from benchmarks import AGAIN, report
from benchmarks import dispatch as regenerate
from benchmarks.kernels import Log, read_rows

Row = dict[str, Any]


def _row(contender: str, p50: float, *, rows: int = 16_384, **values: Any) -> Row:
    return {
        "op": "rms_norm", "variant": f"{rows}x256", "dtype": "bfloat16", "model": True, "rows": rows, "width": 256,
        "pass": "both", "contender": contender, "status": "ok", "p20": p50, "p50": p50, "p80": p50, "us_host": None,
        "bytes": 100, "fraction_of_copy": 2.0 / p50, "tflops": None, "peak_bytes": None, "capability": "sm_90",
        "device": "made up", "command": "c", "commit": "abc", "date": "2026-01-01", **values,
    }  # fmt: skip


def _table(*rows: Row) -> dict[str, Any]:
    return regenerate.table(list(rows), "somewhere")["sm_90"]


def test_a_kernel_is_chosen_only_where_it_wins_by_three_percent() -> None:
    near = _table(_row("triton", 9.8), _row("reference", 10.0))
    far = _table(_row("triton", 9.6), _row("reference", 10.0))
    assert near["eager"] == {"rms_norm": {"256": [[None, "reference"]]}}
    assert far["eager"] == {"rms_norm": {"256": [[None, "triton"]]}}


def test_eager_code_pays_the_host_and_compiled_code_meets_the_compiler() -> None:
    found = _table(
        _row("triton", 4.0, us_host=40.0),
        _row("reference", 9.0, us_host=60.0),
        _row("compile", 3.0, us_host=80.0),
    )
    assert found["eager"]["rms_norm"]["256"] == [[None, "triton"]]
    assert found["compiled"]["rms_norm"]["256"] == [[None, "reference"]]
    found = _table(_row("triton", 4.0, us_host=70.0), _row("reference", 9.0, us_host=60.0))
    assert found["eager"]["rms_norm"]["256"] == [[None, "reference"]]
    assert found["compiled"]["rms_norm"]["256"] == [[None, "triton"]]


def test_a_wrong_kernel_is_left_to_the_reference() -> None:
    wrong = _row("triton", 1.0) | {"status": "wrong: output 0", "pass": "all"}
    assert _table(wrong, _row("reference", 9.0))["eager"]["rms_norm"]["256"] == [[None, "reference"]]


def test_a_kernel_must_win_in_every_variant_of_a_shape() -> None:
    def rows(triton: float, reference: float, variant: str) -> list[Row]:
        times = (("triton", triton), ("reference", reference))
        return [_row(name, p50, variant=variant) for name, p50 in times]

    both = _table(*rows(8.0, 10.0, "stack"), *rows(3.0, 4.0, "max"))
    one = _table(*rows(10.0, 12.0, "stack"), *rows(20.0, 4.0, "max"))
    assert both["eager"]["rms_norm"]["256"] == [[None, "triton"]]
    assert one["eager"]["rms_norm"]["256"] == [[None, "reference"]]


def test_rows_between_two_that_were_timed_take_the_nearer_ones_backend() -> None:
    times = {1_024: (9.0, 5.0), 4_096: (9.0, 5.0), 16_384: (5.0, 9.0), 65_536: (5.0, 9.0)}
    rows = [
        r for n, (t, p) in times.items() for r in (_row("triton", t, rows=n), _row("reference", p, rows=n))
    ]
    assert _table(*rows)["eager"]["rms_norm"]["256"] == [[8_192, "reference"], [None, "triton"]]


def test_the_written_table_is_read_back_and_keeps_other_devices(tmp_path: Path, capsys: Any) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "rows.json").write_text(json.dumps([_row("triton", 5.0), _row("reference", 9.0)]))
    table = tmp_path / "table.json"
    other = {"source": "elsewhere", "eager": {"rope": {"64": [[None, "triton"]]}}}
    table.write_text(json.dumps({"version": 1, "devices": {"sm_86": other}}))
    assert regenerate.main([str(results), "--table", str(table)]) == 0
    with dispatch.use_table(table):
        assert dispatch.active["rms_norm"]["sm_90", "eager"] == {256: [(None, "triton")]}
        assert dispatch.active["rope"]["sm_86", "eager"] == {64: [(None, "triton")]}
    smoke = [_row("triton", 5.0, capability="cpu")]
    (results / "rows.json").write_text(json.dumps(smoke))
    assert regenerate.main([str(results), "--table", str(table)]) == 1
    assert "smoke" in capsys.readouterr().out


def test_a_case_in_which_the_process_died_is_reported_once_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    marks = [
        {"started": "a", "row": _row("all", 1.0)},
        _row("triton", 1.0),
        {"finished": "a"},
        {"started": "b", "row": _row("all", 1.0, rows=8)},
    ]
    path.write_text("".join(json.dumps(mark) + "\n" for mark in marks))
    assert Log(path, {"date": "d"}).seen == Log(path, {"date": "d"}).seen == {"a", "b"}
    crashed = [row for row in read_rows(path) if row["status"].startswith("crashed")]
    assert [row["rows"] for row in crashed] == [8]
    assert len(read_rows(path)) == 2 and read_rows(tmp_path / "none") == []


def test_the_summary_compares_with_the_fastest_baseline_and_names_the_worst_shape() -> None:
    rows = []
    for n, ours, compiled, liger in ((16_384, 2.0, 4.0, 6.0), (1_024, 2.0, 1.0, 8.0)):
        rows += [
            _row("triton", ours, rows=n), _row(f"triton{AGAIN}", ours * 1.1, rows=n), _row("liger", liger, rows=n),
            _row("reference", 10.0, rows=n), _row("compile", compiled, rows=n),
            _row("compile-max-autotune", 9.0, rows=n),
            _row("copy", 1.0, rows=n) | {"status": "yardstick"},
        ]  # fmt: skip
    rows.append(_row("quack", 1.0) | {"status": "not run: not installed"})
    text = report.summary(rows, ["kernels: fine"])
    line = next(line for line in text.splitlines() if line.startswith("| rms_norm | both"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:8] == ["2", "1.00", "1.00", f"{math.sqrt(12):.2f}", "5.00"]
    assert cells[8].startswith("1024x256 bfloat16: 0.50") and cells[9] == "10.0%"
    assert "geomean vs liger, the model's shapes | >= 1.5 | 3.46 | met" in text
    assert "geomean vs torch.compile, the model's shapes | >= 1.15 | 1.00 | missed" in text
    assert "slowest shape vs the fastest baseline, before dispatch | >= 0.97 | 0.50 | missed" in text
    assert "rms_norm quack both: not run: not installed" in text


def test_one_plot_an_op(tmp_path: Path) -> None:
    written = report.plots(
        [_row("triton", 2.0), _row("triton", 3.0, rows=64), _row("reference", 4.0)], tmp_path
    )
    assert [path.name for path in written] == ["rms_norm.svg"]
    assert written[0].read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert report.plots([], tmp_path) == []


def test_an_empty_run_has_a_summary() -> None:
    assert "not measured" in report.summary([], [])
    assert report.geomean([]) is None and report.geomean([2.0, 8.0]) == pytest.approx(4.0)
