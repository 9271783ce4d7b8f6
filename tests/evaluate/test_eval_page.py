"""The command writes what it measured; the page needs no network, keeps its size, and its bars are to scale."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muomni.cli import main
from muomni.config import MelConfig
from muomni.data import embedded
from muomni.evaluate import eval_page
from muomni.evaluate.curves import curve, curves
from muomni.evaluate.eval_page import MAX_BYTES, bar, render_eval
from muomni.evaluate.family import Case, Measured
from muomni.evaluate.figure import Figure
from muomni.evaluate.run import Evaluation


def figure(**changes: Any) -> Figure:
    values: dict[str, Any] = {
        "name": "a.b", "what": "what <it> is", "value": 0.5, "baseline": 1.0, "baseline_name": "nothing",
        "better": "lower", "n": 3, "interval": (0.4, 0.75), "unit": "share",
    }  # fmt: skip
    return Figure(**(values | changes))


def evaluation(**families: Measured) -> Evaluation:
    about = {"data": "made", "split": "test", "seed": 0, "n": 3}
    return Evaluation(about=about, families=families, seconds=dict.fromkeys(families, 1.0))


def page(found: Evaluation) -> str:
    return render_eval(found, mel=MelConfig(), title="t", lead="l", plots={})


def numbers(svg: str, tag: str, names: tuple[str, ...]) -> list[float]:
    element = re.search(rf"<{tag}[^>]*/>", svg)
    assert element is not None
    return [float(re.search(rf'\b{name}="([^"]+)"', element.group()).group(1)) for name in names]  # type: ignore[union-attr]


def test_bars_are_to_scale() -> None:
    # The largest of all is the baseline, 1.0: 196 of the 200 units.
    svg = bar(figure().to_dict())
    assert numbers(svg, "rect", ("x", "width")) == [2.0, 98.0]
    assert numbers(svg, "line", ("x1", "x2")) == [80.4, 149.0]
    assert 'x1="198.0"' in svg
    assert 'class="value"' in svg
    assert 'class="worse"' in bar(figure(better="higher").to_dict())
    below = bar(figure(value=-1.0, interval=(-1.0, 1.0), baseline=0.0, better="higher").to_dict())
    assert numbers(below, "rect", ("x", "width")) == [2.0, 98.0]


def test_page_says_what_is_there_and_what_is_missing() -> None:
    own = Measured(figures=[figure()])
    own.skip("the data has <none>", "c.d")
    own.tables["Taken for others"] = [["group", "taken for"], ["cat", "dog"]]
    own.cases["Wrong ones"] = [Case(item="i/1", expected="cat", given="", error=1.0)]
    text = page(evaluation(text=own))
    for part in (
        "what &lt;it&gt; is", "[0.400, 0.750]", "nothing", "3, 0", "not measured: the data has &lt;none&gt;", "c.d",
        "<td>cat</td><td>dog</td>", "(nothing)", "i/1",
    ):  # fmt: skip
        assert part in text, part
    # Nobody asked, played or showed anything.
    assert "<th>asked</th>" not in text
    result = evaluation(text=own).to_dict()
    assert result["missing"] == [{"family": "text", "name": "c.d", "why": "the data has <none>"}]
    assert result["cases"]["text"]["Wrong ones"][0]["expected"] == "cat"


def test_media_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_page, "_ROOM", 120_000)
    tone = (0.1 * np.sin(np.arange(16_000) * 0.2)).astype(np.float32)
    picture = embedded.SET.file(embedded.SET.pictures("test")[0])
    own = Measured()
    own.cases["Heard"] = [
        Case(item=f"i/{i}", expected="", given="x", error=0.0, heard=tone, pictures=(picture,))
        for i in range(4)
    ]
    text = page(evaluation(asr=own))
    assert 1 <= text.count("<audio") < 4
    assert text.count("<audio") + text.count("sound left out") == 4
    assert len(text) < 120_000 + 20_000


def test_curves_are_of_losses_that_a_stage_has(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    rows = [{"step": i, "loss/token": 5.0 - i, "loss/balance": 0.0, "lr": 1.0} for i in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo')
    svg = curve(folder)
    assert svg.count("<polyline") == 1
    assert "text: training loss" in svg
    assert list(curves(tmp_path)) == ["text"]
    assert curve(tmp_path / "audio") == ""


def test_command_writes_figures_and_a_page(
    run_root: Path,
    tmp_path: Path,
    made: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("muomni.evaluate.run.open_source", lambda names: made)
    arguments = ["eval", "all", "--run", str(run_root), "--families", "asr,retrieval,ocr,speech", "--n", "2"]
    main([*arguments, "--out", str(tmp_path), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "eval.json").read_text())
    assert (shown["n"], shown["split"], shown["data"]) == (2, "test", "embedded")
    assert {row["family"] for row in shown["figures"]} == {"asr", "retrieval", "ocr"}
    assert next(row["why"] for row in shown["missing"] if row["family"] == "speech").startswith(
        "no recogniser"
    )
    text = (tmp_path / "eval.html").read_text()
    assert len(text) < MAX_BYTES
    assert "<audio" in text and 'class="spectrogram"' in text and "data:image/png" in text
    assert 'src="http' not in text and "<script" not in text
    for row in shown["figures"]:
        assert row["name"] in text
    main([*arguments, "--out", str(tmp_path)])
    plain = capsys.readouterr().out
    assert "speech.say.cer: not measured" in plain
    assert "best constant transcript" in plain


@pytest.mark.parametrize("extra", [("--n", "0"), ("--families", "text,smell"), ("--threads", "0")])
def test_mistake_of_eval_all_is_one_line(
    run_root: Path, extra: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["eval", "all", "--run", str(run_root), *extra])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
