"""The model card: front matter that YAML reads, the data with their licences as recorded, figures as given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from muomni.data import embedded
from muomni.infer.history import UNKNOWN, Trained, TrainingSet, of_record, with_licences
from muomni.infer.model_card import Card, CardError, card_text, read_figures
from muomni.infer.session import Session
from muomni.models.omni import parameter_table

ROW = {
    "what": "word error rate", "value": 0.5, "baseline": 1.0, "baseline_name": "silence | blank", "n": 7, "unit": "WER",
}  # fmt: skip


def _card(session: Session, card: Card | None = None, history: tuple[Trained, ...] = ()) -> str:
    return card_text(session.config, history, card or Card(), vocoder=True, dtype="float32")


def test_front_matter_is_yaml_with_the_hub_s_keys(session: Session) -> None:
    yaml = pytest.importorskip("yaml")
    card = Card(license="cc-by-sa-4.0", languages=("en", "no"))
    _, front, _ = _card(session, card).split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["license"] == "cc-by-sa-4.0"
    # Bare, YAML reads Norwegian as false.
    assert values["language"] == ["en", "no"]
    assert values["library_name"] == "muomni"
    assert values["pipeline_tag"] == "any-to-any"
    assert set(values["tags"]) >= {"muomni", "speech"}


def test_without_a_licence_it_says_so_and_lists_the_data_s(session: Session, tmp_path: Path) -> None:
    text = (session.save_pretrained(tmp_path / "m") / "README.md").read_text()
    assert "license: other\n" in text
    assert "names no licence" in text
    for source in embedded.manifest()["sources"]:
        assert f"| embedded: {source['name']} | {source['licence']} | text, audio, vision" in text


def test_sizes_are_those_of_the_parts(session: Session) -> None:
    text = _card(session)
    for name, count in parameter_table(session.config):
        assert f"| {name} | {count:,} |" in text
    without = card_text(session.config, (), Card(), vocoder=False, dtype="float32")
    table = dict(parameter_table(session.config))
    assert f"| total | {table['total'] - table['vocoder']:,} |" in without
    assert "| vocoder |" not in without


def test_licences_are_those_of_the_prepared_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUOMNI_DATA", str(tmp_path))
    (tmp_path / "poems").mkdir()
    manifest = {"format": 1, "name": "poems", "licence": "CC0-1.0"}
    (tmp_path / "poems" / "manifest.json").write_text(json.dumps(manifest))
    record = {"config": {"data": "poems,gone", "seed": 3}, "step": 9}
    (found,) = with_licences([of_record("text", record)])
    assert (found.steps, found.seed) == (9, 3)
    assert found.sets == (
        TrainingSet(name="poems", licence="CC0-1.0"), TrainingSet(name="gone", licence=UNKNOWN),
    )  # fmt: skip
    # What a finished model brings along is kept, whatever lies on this machine.
    (tmp_path / "poems" / "manifest.json").unlink()
    assert with_licences([found]) == (found,)


def test_the_history_survives_a_second_save(session: Session, tmp_path: Path) -> None:
    from muomni.infer.session import load

    first = session.save_pretrained(tmp_path / "first")
    second = load(first, device="cpu").save_pretrained(tmp_path / "second")
    assert (first / "config.json").read_bytes() == (second / "config.json").read_bytes()
    assert (first / "README.md").read_bytes() == (second / "README.md").read_bytes()


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"figures": rows, "size": "nano"}])
def test_figures_of_both_forms_are_shown(wrap: object, session: Session, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(wrap([ROW])))  # type: ignore[operator]
    text = _card(session, Card(figures=read_figures(path)))
    assert "| word error rate (WER) | 0.500 | 1.000 (silence \\| blank) | 7 |" in text
    assert "None were given" in _card(session)


@pytest.mark.parametrize(
    "content", ["", "3", "{}", "[1]", '[{"what": "x"}]', json.dumps([ROW | {"value": "much"}])]
)
def test_a_file_without_figures_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text(content)
    with pytest.raises(CardError, match=r"figures\.json: has no figures") as caught:
        read_figures(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CardError, match="no such file"):
        read_figures(tmp_path / "nowhere.json")


@pytest.mark.parametrize("value", ["", "MIT", "mit\ntags: [x]", "a b", "-x"])
def test_what_would_break_the_front_matter_is_refused(value: str) -> None:
    with pytest.raises(CardError, match="license"):
        Card(license=value)
    with pytest.raises(CardError, match="languages"):
        Card(languages=("en", value))
