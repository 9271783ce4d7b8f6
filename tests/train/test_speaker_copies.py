"""How often a speaker's recordings are taken in an epoch of stage audio."""

from collections import Counter
from collections.abc import Callable

import pytest

from muomni.config import RunConfig
from muomni.data.items import SpeechItem
from muomni.train.stages.audio import MOST_COPIES, SPEEDS, AudioStage, speaker_copies

SmallRun = Callable[..., RunConfig]


def _said(speaker: str, seconds: float) -> SpeechItem:
    return SpeechItem(
        id=f"{speaker}/{seconds}",
        text="yes",
        raw_text="Yes.",
        speaker=speaker,
        synthetic=False,
        n_samples=int(16_000 * seconds),
        split="train",
    )


def test_a_ninth_of_the_most_heard_speakers_time_is_taken_three_times() -> None:
    items = [_said("robot", 60.0), _said("robot", 30.0), _said("person", 10.0), _said("other", 80.0)]
    assert speaker_copies(items) == {"robot": 1, "person": 3, "other": 1}
    assert speaker_copies([_said("robot", 3_600.0), _said("person", 1.0)])["person"] == MOST_COPIES
    assert speaker_copies([]) == {}


def test_an_epoch_has_a_seldom_heard_speaker_more_often_and_held_out_clips_once(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = AudioStage(small_run("audio"))
    items = [_said("robot", 4.0), _said("robot", 5.0), _said("person", 1.0)]
    monkeypatch.setattr(stage, "items", lambda split: items)
    stage._orders = {}
    copies, _ = stage.order("train")
    assert Counter((item.id, speed) for item, speed in copies) == {
        (item.id, speed): 3 if item.speaker == "person" else 1
        for item in items
        for speed in range(len(SPEEDS))
    }
    assert [item.id for item, _ in stage.order("test")[0]] == [item.id for item in items]
