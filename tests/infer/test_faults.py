"""Turns that fail, are dropped or interrupted: nothing is left behind, and everybody else's answers stay the same."""

import gc
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muomni.config import TokenBudgetError
from muomni.data.film import Video
from muomni.infer.request import RequestError
from muomni.infer.sampling import Sampling, SamplingError
from muomni.infer.session import Session, load
from muomni.infer.stream import Chunk
from muomni.infer.turn import TurnStream

HOW: dict[str, Any] = {"max_new_tokens": 10, "temperature": 1.0}


def _idle(session: Session) -> bool:
    """No answer is going on in the engine, and every lane is back."""
    return not session.engine.batch._going and len(set(map(id, session.engine._lanes))) == len(
        session.engine._lanes
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": None}, "seed: expected a whole number, got None"),
        ({"seed": 1.5}, "seed: expected a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens: expected a whole number"),
        ({"max_repeats": 2.0}, "max_repeats: expected a whole number"),
        ({"max_repeats": 1}, "max_repeats: expected 0, or at least 2, got 1"),
        ({"max_repeats": -4}, "max_repeats: expected 0, or at least 2, got -4"),
        ({"stop": [1]}, "stop: expected a string or several"),
        ({"temperature": None}, "temperature: expected a number, got None"),
        ({"temperature": 1e-46}, "temperature: expected 0, or at least 0.0001"),
        ({"top_k": 2.5}, "top_k: expected a whole number"),
        ({"top_p": "a"}, "top_p: expected a number"),
    ],
)
def test_settings_that_cannot_be_are_one_line_and_change_nothing(
    session: Session, settings: dict[str, Any], words: str
) -> None:
    expected = session.another().chat("the cat", speak=False, **HOW).text
    with pytest.raises((RequestError, SamplingError), match=words):
        session.chat("who", **(HOW | settings))
    assert session.chat("the cat", speak=False, **HOW).text == expected


def test_numpys_whole_numbers_and_no_stop_are_settings_like_others(session: Session) -> None:
    plain = session.another().chat("the cat", seed=3, speak=False, **HOW).text
    assert session.chat("the cat", seed=np.int64(3), stop=None, speak=False, **HOW).text == plain


@pytest.mark.parametrize("place", ["prefill", "begin", "borrow"])
def test_a_turn_that_fails_while_it_begins_leaves_nothing_behind(session: Session, place: str) -> None:
    other = session.another()
    first = session.another().chat("the cat", **HOW)
    fresh = session.another()
    fresh.chat("the cat", **HOW)
    second, others = fresh.chat("who is it", **HOW), other.chat("press one", **HOW)
    assert session.chat("the cat", **HOW).text == first.text
    owner = session.engine if place == "borrow" else session.engine.decoder

    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    setattr(owner, place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.stream("what", **HOW)
    delattr(owner, place)
    assert _idle(session)
    assert session.chat("who is it", **HOW).text == second.text
    other.reset()
    assert other.chat("press one", **HOW).text == others.text


def test_a_turn_that_fails_in_the_middle_is_closed(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, other = session.stream("the cat", **HOW), session.another()
    expected = session.another().chat("who", **HOW).text
    given = [next(stream).text]

    def failing(rows: object) -> None:
        raise OSError("the power is gone")

    monkeypatch.setattr(session.engine.decoder, "step", failing)
    with pytest.raises(OSError, match="power"):
        given.extend(chunk.text for chunk in stream)
    monkeypatch.undo()
    assert _idle(session) and stream.reply.ended == "interrupted" and stream.reply.text == "".join(given)
    assert other.chat("who", **HOW).text == expected


def test_streams_that_nobody_holds_give_rows_and_lanes_back_at_once(run_root: Path) -> None:
    session = load(run_root, device="cpu", n_rows=2)
    expected = session.another().chat("who", **HOW).text
    gc.disable()
    try:
        for _ in range(5):
            for _chunk in session.another().stream("the cat", **HOW):
                break
        assert _idle(session) and len(session.engine._lanes) == 1
        dropped = session.another()
        stream = dropped.stream("the cat", **HOW)
        next(stream)
        del stream
        # Its conversation is still there, and remembers what was given out.
        assert session.another().chat("who", **HOW).text == expected
        assert session.another().chat("who", **HOW).text == expected
        dropped.chat("and then", **HOW)
        assert len(dropped._conversation.turns) == 2
    finally:
        gc.enable()


def test_an_answer_ends_where_rotary_positions_do(session: Session) -> None:
    limit = session.engine.max_positions
    picture = np.zeros((32, 32, 3), np.uint8)
    # A film without sound takes time and few tokens.
    seconds = (limit - 16) / 12.5
    video = Video(frames=[picture], frame_times=[0.0], seconds=seconds)
    stream = session.stream("cat", video=video, speak=False, max_new_tokens=90, stop=None)
    place = int(session._conversation.document().positions.max()) + 1
    session.engine.decoder.sampler._forbidden = torch.arange(8)
    reply_text = [chunk.text for chunk in stream]
    assert 0 < limit - place < 90 and reply_text
    assert stream.reply.ended in ("context", "end") and len(stream.ids) <= limit - place - 1
    if stream.reply.ended == "context":
        assert len(stream.ids) == limit - place - 1


def test_a_stop_string_behind_broken_utf8_is_neither_spoken_nor_remembered(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    spell, tokenizer = session.tokenizer.spell, session.tokenizer
    by_bytes = {spell(i): i for i in range(8, tokenizer.vocab_size)}
    tokens = [by_bytes[bytes([b])] for b in b"\xff\xff\xffab STOP more"]
    written = iter(tokens)

    class Scripted:
        def replace(self, row: int, sampling: object, *, seed: int) -> None:
            pass

        def __call__(self, logits: torch.Tensor, rows: object) -> torch.Tensor:
            return torch.tensor([next(written)])

    monkeypatch.setattr(session.engine.decoder, "sampler", Scripted())
    reply = session.chat("go", stop=" STOP", speak=False, max_new_tokens=30)
    assert reply.text == "\ufffd\ufffd\ufffdab" and reply.ended == "stop"
    session._settle()
    answer = session._conversation.turns[-1].turn.answer
    assert answer is not None and tokenizer.decode(answer) == reply.text


def test_an_interrupted_reply_is_of_one_piece(session: Session, scripted: Callable) -> None:
    session.engine.model.talker.mean_advance = lambda hidden: hidden.new_full((1,), 1.0)  # type: ignore[method-assign]
    scripted(session, "日本 日本 日本 日本")
    stream = session.stream("go on", max_new_tokens=60)
    for _ in range(40):
        next(stream, None)
    reply = stream.stop(0.3)
    assert "\ufffd" not in reply.text and "日本 日本 日本 日本".startswith(reply.text) and reply.text
    assert reply.codes.shape[1] <= 4 and reply.timings["total"]
    session.chat("who", speak=False, max_new_tokens=2)
    with pytest.raises(RequestError, match="the conversation has gone on"):
        stream.stop(0.1)


def test_what_never_fits_is_refused_before_it_is_looked_at(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("looked at")

    monkeypatch.setattr(session.engine, "see", never)
    monkeypatch.setattr("muomni.infer.session.read_picture", never)
    with pytest.raises(TokenBudgetError, match="remove"):
        session.chat("what", image=[np.zeros((8, 8, 3), np.uint8)] * 2_000)


def test_sessions_that_come_and_go_at_random_answer_as_each_alone(run_root: Path) -> None:
    """They begin, go on, are stopped, dropped and forgotten in the middle; there are fewer rows than conversations."""
    chance, texts = random.Random(3), ["the cat", "who is it", "press one for yes", "hello world"]
    quiet = {"speak": False, "temperature": 1.0}
    engine = load(run_root, device="cpu", n_rows=3)
    known: dict[tuple, str] = {}

    def alone(history: tuple[tuple[str, int, int], ...]) -> str:
        """The last answer of a conversation by itself."""
        if history not in known:
            talk = load(run_root, device="cpu", n_rows=1)
            for text, seed, n in history:
                reply = talk.chat(text, seed=seed, max_new_tokens=n, **quiet)
            known[history] = reply.text
        return known[history]

    n_whole = 0
    for _ in range(12):
        talks: list[list[Any]] = []
        for _ in range(chance.randint(6, 24)):
            busy = sum(talk[2] is not None for talk in talks)
            if len(talks) < 5 and (not talks or chance.random() < 0.3):
                talks.append([engine.another(), (), None, ""])
            talk = chance.choice(talks)
            if talk[2] is None:
                if busy == 3:
                    continue
                asked = chance.choice(texts), chance.randrange(3), chance.choice([2, 6, 12])
                if len(talk[1]) == 2:
                    talk[0].reset()
                    talk[1] = ()
                talk[1] += (asked,)
                talk[2] = talk[0].stream(asked[0], seed=asked[1], max_new_tokens=asked[2], **quiet)
                talk[3] = ""
            elif chance.random() < 0.2:
                # Somebody leaves: with what was given out, or altogether.
                if chance.random() < 0.5:
                    talk[2].stop()
                    talk[0].reset()
                    talk[1], talk[2] = (), None
                else:
                    talks.remove(talk)
                    del talk
            else:
                stream: TurnStream = talk[2]
                for _ in range(chance.randint(1, 9)):
                    chunk: Chunk | None = next(stream, None)
                    if chunk is None:
                        assert talk[3] == alone(talk[1])
                        talk[2], n_whole = None, n_whole + 1
                        break
                    talk[3] += chunk.text
    assert n_whole > 20
    del talk, talks, stream
    assert _idle(engine)


def test_temperatures_that_are_taken_are_not_zero_to_float32() -> None:
    how = Sampling(temperature=1e-4)
    assert torch.isfinite(torch.tensor([1e4]) / torch.tensor(how.temperature)).all()


def test_a_lane_that_was_made_in_inference_mode_is_used_outside_of_it(session: Session) -> None:
    expected = session.another().chat("the cat", **HOW)
    session.engine._lanes.clear()
    with torch.inference_mode():
        session.another().chat("who", **HOW)
    again = session.chat("the cat", **HOW)
    assert again.text == expected.text and np.array_equal(again.codes, expected.codes)
