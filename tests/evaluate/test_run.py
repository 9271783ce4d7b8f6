"""All families on an untrained model: every figure is whole, what is missing has a reason, and none beats chance."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from muomni.data import embedded
from muomni.errors import UserError
from muomni.evaluate import retrieval
from muomni.evaluate.judges import Panel
from muomni.evaluate.run import FAMILIES, Evaluation, evaluate
from muomni.infer.session import Session, load


@pytest.fixture
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen items of everything."""
    whole, most = embedded.SET.items, {"speech": 6, "pictures": 12, "conversations": 12}
    monkeypatch.setattr(embedded.SET, "items", lambda kind, split: whole(kind, split)[: most.get(kind)])


def test_every_family_gives_whole_figures(tmp_path: Path, write_run: Callable, few_items: None) -> None:
    write_run(tmp_path, max_seq_len=512)
    seen: list[str] = []
    session = load(tmp_path, device="cpu")
    heard = Panel(recognise=lambda waveform: "one two three")
    found = evaluate(
        session, tmp_path, n=4, panel=heard, progress=lambda done, total, name: seen.append(name)
    )
    result = found.to_dict()
    assert seen == [*FAMILIES, "done"]
    assert list(result["seconds"]) == list(FAMILIES)
    figures = {row["name"]: row for row in result["figures"]}
    assert len(figures) == len(result["figures"])
    missing = {row["name"]: row["why"] for row in result["missing"]}
    assert not figures.keys() & missing.keys()
    # What the embedded set does not have is said to be missing.
    assert {
        "ocr.char_error_rate",
        "vqa.f1.caption",
        "vqa.exact.definition",
        "answer.loss.read",
    } <= missing.keys()
    assert {row["family"] for row in (*result["figures"], *result["missing"])} == set(FAMILIES)
    for row in figures.values():
        assert math.isfinite(row["value"]), row
        assert math.isfinite(row["baseline"]), row
        assert row["interval"][0] <= row["value"] + 1e-9, row
        assert row["value"] <= row["interval"][1] + 1e-9, row
        assert row["n"] > 0
        assert row["what"]
        assert row["unit"]
        assert row["baseline_name"]
    json.dumps(result)
    # Nothing was trained: media make no difference, text is no better than chance.
    assert abs(figures["answer.picture_used"]["value"]) < 0.2
    for order in ("bigram", "5gram"):
        row = figures[f"text.bits_per_byte.{order}"]
        assert row["value"] > row["baseline"]
    assert figures["text.bits_per_byte.5gram"]["baseline"] < figures["text.bits_per_byte.unigram"]["baseline"]
    assert figures["asr.char_error_rate"]["value"] > 0.5
    assert figures["vqa.exact.group"]["value"] < 0.5


def test_a_model_without_its_stages_says_what_is_missing(session: Session, few_items: None) -> None:
    families = ("text", "retrieval", "answers")
    found: Evaluation = evaluate(session, None, n=4, families=families)
    figures = {x.name for own in found.families.values() for x in own.figures}
    missing = {x.name: x.why for own in found.families.values() for x in own.missing}
    assert list(found.families) == list(families)
    # The model's own Thinker is there, and so are floors that need no model.
    assert {"text.bits_per_byte.after_omni", "retrieval.nearest_group"} <= figures
    for name, what in {
        "text.bits_per_byte.5gram": "Thinker of stage text",
        "answer.loss.name": "Thinker of stage text",
        "retrieval.picture_to_caption": "text tower of stage vision",
    }.items():
        assert name not in figures
        assert what in missing[name]


def test_a_family_that_is_not_one_is_named(session: Session) -> None:
    with pytest.raises(UserError, match="'smell'"):
        evaluate(session, families=("text", "smell"))
    with pytest.raises(UserError, match="got none"):
        evaluate(session, families=())


def test_nearest_picture_of_a_training_picture_is_itself() -> None:
    known = embedded.SET.pictures("train")[:40]
    renamed = [dataclasses.replace(item, group=item.id) for item in known]
    groups = retrieval.nearest_groups(renamed[5:8], renamed, embedded.SET)
    assert groups == [item.id for item in renamed[5:8]]
