"""Speech recorded once and replayed against speech made step by step; lanes used again."""

from collections.abc import Callable

import numpy as np
import pytest

from muomni.infer.engine import Engine
from muomni.infer.lane import Lane
from muomni.infer.sampling import Sampling
from muomni.infer.session import Session


def _played_back(work: Callable[[], None]) -> Callable[[], None]:
    """Stands in for a CUDA graph: runs the work as often as recording does, and again for every replay."""
    for _ in range(4):
        work()
    return work


@pytest.mark.parametrize(
    "how", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 3}]
)
def test_replayed_speech_equals_the_other(session: Session, how: dict) -> None:
    engine = session.engine
    recording = Session(
        Engine(engine.model, n_ids=session.tokenizer.vocab_size, record=_played_back), session.tokenizer
    )
    for seed, text in ((3, "the cat sat on it"), (4, "who"), (5, "press one for yes")):
        expected = session.speak(text, seed=seed, **how)
        said = recording.speak(text, seed=seed, **how)
        assert len(said) == len(expected) > 0
        np.testing.assert_allclose(said.waveform, expected.waveform, atol=1e-5)
    (lane,) = recording.engine._lanes
    assert len(lane._replays) == 1
    assert recording.engine._lanes[0]._talker.backbone.used[0] > 0


def test_a_lane_used_again_knows_nothing_of_before(session: Session) -> None:
    how = {"temperature": 1.0, "seed": 9}
    first = session.speak("the cat", **how)
    assert np.array_equal(first.waveform, session.speak("the cat", **how).waveform)
    session.speak("who is it then", temperature=1.0)
    assert np.array_equal(first.waveform, session.speak("the cat", **how).waveform)
    assert len(session.engine._lanes) == 1


def test_two_utterances_at_once_have_a_lane_each(session: Session) -> None:
    lanes = [session.engine.borrow(Sampling(), seed=0) for _ in range(2)]
    assert lanes[0] is not lanes[1] and all(isinstance(lane, Lane) for lane in lanes)
    session.engine.put_back(lanes[0])
    assert session.engine.borrow(Sampling(), seed=1) is lanes[0]
