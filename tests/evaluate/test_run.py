"""All families on an untrained model: every figure is whole, and none beats chance by much."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from muomni.data import embedded
from muomni.evaluate.run import evaluate


@pytest.fixture
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen items of everything."""
    whole, most = embedded.SET.items, {"speech": 6, "pictures": 12, "conversations": 12}
    monkeypatch.setattr(embedded.SET, "items", lambda kind, split: whole(kind, split)[: most.get(kind)])


def test_every_family_gives_whole_figures(tmp_path: Path, write_run: Callable, few_items: None) -> None:
    write_run(tmp_path, max_seq_len=512)
    seen: list[str] = []
    result = evaluate(tmp_path, progress=lambda done, total, name: seen.append(name), device="cpu")
    assert seen == [*result["seconds"], "done"]
    figures = {row["name"]: row for row in result["figures"]}
    assert len(figures) == len(result["figures"])
    for family in ("text.", "asr.", "retrieval.", "codec.", "answer.", "talker."):
        assert any(name.startswith(family) for name in figures), family
    for row in figures.values():
        assert math.isfinite(row["value"])
        assert math.isfinite(row["baseline"])
        assert row["interval"][0] <= row["value"] + 1e-9
        assert row["value"] <= row["interval"][1] + 1e-9
        assert row["n"] > 0
        assert row["what"]
        assert row["unit"]
        assert row["baseline_name"]
    json.dumps(result)
    # Nothing was trained: media make no difference, text is no better than chance.
    assert abs(figures["answer.picture_used"]["value"]) < 0.2
    assert figures["text.bits_per_byte.bigram"]["value"] > figures["text.bits_per_byte.bigram"]["baseline"]
    assert figures["asr.char_error_rate"]["value"] > 0.5
