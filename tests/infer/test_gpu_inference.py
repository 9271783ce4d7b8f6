"""On a CUDA device: recorded steps against the others, and whole turns against those of a CPU."""

import copy

import numpy as np
import pytest
import torch

from muomni.infer.engine import Engine
from muomni.infer.session import Session
from muomni.models.vocoder import Vocoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def _on(device: str, session: Session, *, record: bool) -> Session:
    """A session with the same weights."""
    model = copy.deepcopy(session.engine.model).to(device)
    engine = Engine(model, n_ids=session.tokenizer.vocab_size)
    if not record:
        engine._record = engine.decoder._record = None
    return Session(engine, session.tokenizer)


def test_replayed_turns_exact_to_eager_ones_and_near_those_of_a_cpu(session: Session) -> None:
    said = {"max_new_tokens": 24, "seed": 3, "temperature": 0.0}
    clip = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)
    graph, eager = _on("cuda", session, record=True), _on("cuda", session, record=False)
    for text in ("the cat", "who is it, then"):
        replies = [s.chat(text, audio=clip, **said) for s in (graph, eager, session)]
        assert replies[0].text == replies[1].text == replies[2].text
        assert np.array_equal(replies[0].codes, replies[1].codes)
        np.testing.assert_allclose(replies[0].audio.waveform, replies[1].audio.waveform, atol=1e-5)


def test_rows_replayed_together_exact_to_each_alone(session: Session) -> None:
    first = _on("cuda", session, record=True)
    others = [first, first.another(), first.another()]
    texts = ("the cat", "hello world", "press one for yes")
    alone = [
        _on("cuda", session, record=True)
        .chat(t, speak=False, max_new_tokens=20, seed=i, temperature=0.7)
        .text
        for i, t in enumerate(texts)
    ]
    streams = [
        s.stream(t, speak=False, max_new_tokens=20, seed=i, temperature=0.7)
        for i, (s, t) in enumerate(zip(others, texts, strict=True))
    ]
    found = ["", "", ""]
    going = dict(enumerate(streams))
    while going:
        for i, stream in list(going.items()):
            chunk = next(stream, None)
            if chunk is None:
                del going[i]
            else:
                found[i] += chunk.text
    assert found == alone


def test_speech_is_replayed_with_a_trained_vocoder(session: Session) -> None:
    if not isinstance(session.engine.model.vocoder, Vocoder):
        pytest.skip("the fixture's model speaks through Griffin-Lim")
    graph = _on("cuda", session, record=True)
    audio = graph.speak("the cat sat on the mat", seed=1)
    lane = graph.engine._lanes[0]
    assert lane._replays and len(audio) > 0
