"""Rows of the cache: kept between turns, taken from whoever used his the longest ago, never from an answer."""

import gc

import pytest

from muomni.infer.rows import BusyError, Lease, Rows
from muomni.infer.session import Session, load


def test_a_row_is_kept_and_the_one_used_the_longest_ago_is_taken() -> None:
    rows, (a, b, c) = Rows(2), (Lease(), Lease(), Lease())
    assert [rows.take(a), rows.take(b), rows.take(a)] == [0, 1, 0]
    assert rows.take(c) == 1
    assert (a.row, b.row, c.row) == (0, None, 1)
    a.busy = True
    assert rows.take(b) == 1 and c.row is None
    b.busy = True
    with pytest.raises(BusyError, match=r"all 2 rows .* \(n_rows\)"):
        rows.take(c)


def test_a_conversation_that_is_gone_gives_its_row_back() -> None:
    rows, kept, gone = Rows(2), Lease(), Lease()
    rows.take(gone)
    rows.take(kept)
    # Whoever is busy holds its lease: that a dropped stream is closed first, test_faults.py shows.
    del gone
    gc.collect()
    assert rows.take(Lease()) == 0 and kept.row == 1


def test_a_conversation_whose_row_was_taken_goes_on_as_if_it_had_kept_it(run_root: object) -> None:
    answers: list[list[str]] = []
    for n_rows in (1, 4):
        talks = [load(run_root, device="cpu", n_rows=n_rows)]  # type: ignore[arg-type]
        talks += [talks[0].another(), talks[0].another()]
        answers.append(
            [
                talk.chat(text, speak=False, max_new_tokens=6).text
                for text in ("the cat", "who")
                for talk in talks
            ]
        )
        assert talks[0].engine.decoder.cache.used.any()
    assert answers[0] == answers[1]


def test_streams_of_one_thread_share_steps_and_give_what_each_gives_alone(session: Session) -> None:
    asked = ["the cat", "who is it", "press one", "say it again"]
    alone = [session.another().chat(text, seed=1, max_new_tokens=12, temperature=1.0) for text in asked]
    n_before = session.engine.batch.n_steps
    talks = [session.another() for _ in asked]
    streams = [
        talk.stream(text, seed=1, max_new_tokens=12, temperature=1.0)
        for talk, text in zip(talks, asked, strict=True)
    ]
    left = list(streams)
    while left:
        left = [stream for stream in left if next(stream, None) is not None]
    assert [stream.reply.text for stream in streams] == [reply.text for reply in alone]
    for stream, reply in zip(streams, alone, strict=True):
        assert (stream.reply.audio.waveform == reply.audio.waveform).all()
    n_tokens = sum(len(stream.ids) for stream in streams)
    assert session.engine.batch.n_steps - n_before < 0.6 * n_tokens


def test_more_streams_than_rows_are_refused_in_one_line(run_root: object) -> None:
    first = load(run_root, device="cpu", n_rows=1)  # type: ignore[arg-type]
    stream = first.stream("the cat", speak=False)
    next(stream)
    second = first.another()
    with pytest.raises(BusyError, match="use up or close a stream"):
        second.chat("who", speak=False)
    stream.close()
    assert second.chat("who", speak=False, max_new_tokens=3).ended in ("end", "length")
