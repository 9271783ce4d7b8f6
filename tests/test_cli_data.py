"""`muomni data` from the outside: what is printed, what is written, and one line for a mistake."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "data"))
import made

from muomni import cli
from muomni.data import embedded, sources
from muomni.data.prepare import prepare
from muomni.data.sources.adapter import Adapter

SETS = {
    "made": made.adapter(),
    "asking": made.adapter(name="asking", opt_in="non-commercial", n=1),
    "bad": made.adapter(name="bad", n_bad=100),
}


@pytest.fixture(autouse=True)
def few_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sets made in memory, and one recipe of them."""
    monkeypatch.setattr(sources, "adapters", lambda: SETS)
    monkeypatch.setitem(sources.RECIPES, "small", ("made",))
    monkeypatch.setenv("MUOMNI_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main([str(a) for a in ("data", *arguments)])
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_recipe_is_prepared_once_and_says_what_it_downloads(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = run("prepare", "small", "--workers", "1", capsys=capsys)
    assert code == 0
    assert "to download into" in shown and "1 of unknown size" in shown and "made 1 (pypi, MIT)" in shown
    assert "made: 120 speech, 0.04 h; 120 pictures" in shown and "12 questions, 0.00 h" in shown
    code, shown, _ = run("prepare", "made", capsys=capsys)
    assert code == 0 and shown.startswith("made: already there, 120 speech")


def test_list_names_every_set_with_its_terms_and_what_is_prepared(
    few_sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(made.adapter(), few_sets, cache=few_sets)
    code, shown, _ = run("list", capsys=capsys)
    assert code == 0
    assert "MIT (opt-in: non-commercial)" in shown and "120 speech" in shown and "small" in shown
    code, shown, _ = run("list", "--json", capsys=capsys)
    rows = {row["name"]: row for row in json.loads(shown)}
    assert set(rows) == set(SETS) and rows["made"]["recipes"] == ["small"]
    assert rows["asking"]["prepared"] is None and rows["made"]["prepared"]["lines"]["train"]["items"] > 0


def test_terms_must_be_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = run("prepare", "asking", capsys=capsys)
    assert (code, told) == (
        2,
        "muomni: data: asking is non-commercial (MIT); say --accept asking if that suits your use.\n",
    )
    code, _, _ = run("prepare", "asking", "--accept", "asking", "--workers", "1", capsys=capsys)
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("prepare", "nope"), "no set is named 'nope'; `muomni data list` shows them."),
        (("prepare",), "name a set, or small, or full"),
        (("stats", "made"), "'made' is not prepared in"),
        (("show", "small"), "run `muomni data prepare small`."),
        (("verify", "made"), "run `muomni data prepare made`."),
        (("prepare", "bad", "--workers", "1"), "of bad cannot be used, at most 1 % may be"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = run(*arguments, capsys=capsys)
    assert code == 2 and told in error and error.count("\n") == 1


def test_stats_are_those_of_the_items(few_sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(made.adapter(), few_sets, cache=few_sets)
    code, shown, _ = run("stats", "made", "--json", capsys=capsys)
    assert code == 0
    rows = {(row["kind"], row["split"]): row for row in json.loads(shown)}
    speech = [row for (kind, _), row in rows.items() if kind == "speech"]
    assert sum(row["items"] for row in speech) == 120
    assert sum(row["hours"] for row in speech) == pytest.approx(120 * made.SECONDS / 3600, rel=0.02)
    assert rows["speech", "train"]["speakers"] == 3 and rows["speech", "train"]["synthetic"] == 0
    assert rows["speech", "train"]["fit_the_context"] == rows["speech", "train"]["items"]
    # Three words of at most 18 characters, and 15 frames of 12.5 Hz with four places each.
    assert sum(row["ctc_feasible"] for row in speech) == 120
    code, shown, _ = run("stats", "made", capsys=capsys)
    assert code == 0 and "seconds 5/50/95 %" in shown and "1.2/1.2/1.2" in shown


def test_the_embedded_set_has_stats_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = run("stats", "embedded", "--json", capsys=capsys)
    rows = {(row["kind"], row["split"]): row["items"] for row in json.loads(shown)}
    assert code == 0 and rows["pictures", "test"] == len(embedded.SET.pictures("test"))
    out = tmp_path / "page.html"
    code, shown, _ = run("show", "embedded", "--n", "6", "--split", "test", "--out", out, capsys=capsys)
    page = out.read_text(encoding="utf-8")
    assert (code, shown.strip()) == (0, str(out))
    assert page.count("<figure>") == 6 and page.count("<audio") == 6 and page.count("<pre>") == 2
    assert embedded.SET.pictures("test")[0].label in page and "http" not in page


def test_verify_covers_the_embedded_and_every_prepared_set(
    few_sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(made.adapter(), few_sets, cache=few_sets)
    code, shown, _ = run("verify", capsys=capsys)
    assert code == 0 and shown.startswith("embedded: 5 files") and "made: " in shown
    (folder / "records.jsonl").write_text("")
    code, _, told = run("verify", capsys=capsys)
    assert code == 2 and "records.jsonl: SHA-256" in told


def test_texts_on_the_page_are_escaped(tmp_path: Path) -> None:
    import dataclasses
    from collections.abc import Iterator

    from muomni.data.prepared import Prepared
    from muomni.data.show import page
    from muomni.data.sources.adapter import Found

    def hostile(cache: Path) -> Iterator[Found]:
        text = "<script>alert(1)</script>"
        yield Found(kind="texts", id="x/1", group="x", split="train", fields={"text": text})

    source: Adapter = dataclasses.replace(made.adapter(name="hostile"), find=hostile)
    shown = page(Prepared([prepare(source, tmp_path, cache=tmp_path)]), title="<b>")
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "<title>&lt;b&gt;" in shown
