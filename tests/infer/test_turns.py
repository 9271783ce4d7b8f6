"""How turns end: stop strings, limits, interruption; what the conversation remembers of each."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muomni.config import TokenBudgetError
from muomni.data.template import Turn, render
from muomni.infer.session import RequestError, Session
from muomni.tokens import N_SPECIAL, SPECIAL_TOKENS

TEXT = "the cat sat on the mat, say it again"


def _remembered(session: Session) -> str:
    """The last answer as the conversation holds it; the cache must hold exactly that."""
    session._settle()
    last = session._conversation.turns[-1].turn
    assert last.answer is not None and session._lease.row is not None
    # All but the EOS that closes the turn, which is written with the next prompt.
    n_positions = len(session._conversation.document()) - 1
    assert session.engine.decoder.cache.used[session._lease.row] == n_positions
    return session.tokenizer.decode(last.answer)


@pytest.mark.parametrize(
    ("stop", "text", "ended"),
    [
        ((), TEXT, "end"),
        ("mat", "the cat sat on the ", "stop"),
        (["xyz", ", s"], "the cat sat on the mat", "stop"),
        ("the cat", "", "stop"),
        ("again!", TEXT, "end"),
    ],
)
def test_a_stop_string_ends_the_text_and_is_no_part_of_it(
    session: Session, scripted: Callable, stop: object, text: str, ended: str
) -> None:
    scripted(session, TEXT)
    stream = session.stream("go on", max_new_tokens=90, stop=stop)  # type: ignore[typeddict-item]
    given_out = "".join(chunk.text for chunk in stream)
    assert (given_out, stream.reply.text, stream.reply.ended) == (text, text, ended)
    assert stream.reply.finished
    # Whole tokens are remembered: those that hold nothing of the stop string.
    kept = _remembered(session)
    assert text.startswith(kept) and len(text) - len(kept) < 8
    if ended == "end":
        assert kept == text


@pytest.mark.parametrize(("n_tokens", "ended"), [(5, "length"), (500, "context")])
def test_an_answer_ends_at_its_most_tokens_or_where_the_context_is_full(
    session: Session, scripted: Callable, n_tokens: int, ended: str
) -> None:
    scripted(session, "cat " * 200)
    reply = session.chat("go on", speak=False, max_new_tokens=n_tokens, max_repeats=0)
    assert (reply.ended, reply.finished) == (ended, False)
    assert _remembered(session) == reply.text
    n_used = len(session._conversation.document())
    assert n_used == session.config.max_seq_len if ended == "context" else n_used < session.config.max_seq_len


def test_an_answer_in_a_loop_ends(session: Session, scripted: Callable) -> None:
    scripted(session, "so " + "on and on " * 40)
    reply = session.chat("go on", speak=False, max_new_tokens=90)
    assert (reply.ended, reply.finished) == ("loop", False) and _remembered(session) == reply.text
    assert reply.text.startswith("so on and on") and 3 <= reply.text.count("on and on") <= 10
    # The conversation goes on behind it, and nobody else is held up.
    scripted(session, TEXT)
    assert session.chat("and now", speak=False, max_new_tokens=90).text == TEXT


def test_interrupted_speech_is_remembered_as_far_as_it_was_heard(
    session: Session, scripted: Callable
) -> None:
    # A steady pace: four characters a frame, fifty a second.
    session.engine.model.talker.mean_advance = lambda hidden: hidden.new_full((1,), 4.0)  # type: ignore[method-assign]
    texts = []
    for played in (0.0, 0.2, 0.4, 9.0):
        scripted(session, TEXT)
        stream = session.stream("go on", max_new_tokens=90)
        for _ in range(25):
            next(stream, None)
        reply = stream.stop(played)
        assert reply.audio.seconds <= played + 1e-9
        # Frame n is at character 4 n; the token it is in has been begun.
        n_heard = min(len(TEXT), 4 * (int(np.ceil(played * 12.5 - 1e-9)) - 1) + 1) if played else 0
        assert TEXT.startswith(reply.text)
        assert n_heard <= len(reply.text) < n_heard + 8 if n_heard else reply.text == ""
        assert reply.ended == ("interrupted" if played < 9 else reply.ended)
        assert _remembered(session) == reply.text
        texts.append(reply.text)
        session.reset()
    assert sorted(texts, key=len) == texts and len(set(texts)) == 4


def test_what_follows_an_interruption_is_what_follows_the_same_history(session: Session) -> None:
    stream = session.stream("the cat", max_new_tokens=30, temperature=1.0, seed=3)
    for _ in range(12):
        next(stream)
    heard = stream.stop(0.3)
    after = session.chat("who is it", speak=False, max_new_tokens=8)
    other = session.another()
    first = session._conversation.turns[0]
    assert first.turn.answer == tuple(stream.ids) and session.tokenizer.decode(stream.ids) == heard.text
    other._conversation.turns = [first]
    assert other.chat("who is it", speak=False, max_new_tokens=8).text == after.text


def test_stop_without_seconds_keeps_what_was_given_out(session: Session, scripted: Callable) -> None:
    scripted(session, TEXT)
    stream = session.stream("go on", speak=False, max_new_tokens=90)
    text = "".join(next(stream).text for _ in range(5))
    reply = stream.stop()
    assert (reply.text, reply.ended) == (text, "interrupted")
    assert _remembered(session) == text
    assert stream.stop().text == text


def test_stop_refuses_what_cannot_be_and_the_turn_goes_on(session: Session, scripted: Callable) -> None:
    scripted(session, TEXT)
    stream = session.stream("go on", speak=False, max_new_tokens=90)
    with pytest.raises(RequestError, match="not spoken"):
        stream.stop(1.0)
    assert "".join(chunk.text for chunk in stream) == TEXT
    spoken = session.stream("go on", max_new_tokens=5)
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match="expected 0 or more"):
            spoken.stop(seconds)


CONTROL = st.lists(
    st.one_of(st.sampled_from(SPECIAL_TOKENS), st.text(max_size=6), st.sampled_from(["<|", "|>", "[", "]"])),
    min_size=1,
    max_size=8,
).map("".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=CONTROL)
def test_control_strings_in_a_users_text_stay_text(session: Session, text: str) -> None:
    ids = session.tokenizer.encode(text)
    assert all(i >= N_SPECIAL for i in ids)
    assert session.tokenizer.decode(ids) == text
    document = render([Turn(text=ids)], n_image_tokens=1, max_seq_len=10_000)
    # BOS, USER, EOS, ASSISTANT: those of the template and no others.
    assert int((document.input_ids < N_SPECIAL).sum()) == 4


@torch.inference_mode()
def test_every_token_of_the_prompt_changes_the_logits(session: Session) -> None:
    model, ids = session.engine.model, session.tokenizer.encode("the cat sat on the mat")

    def logits(text: list[int]) -> torch.Tensor:
        document = render([Turn(text=text)], n_image_tokens=1, max_seq_len=128)
        decoder = session.engine.decoder
        decoder.cut(0, 0)
        return model.thinker.logits(
            decoder.prefill(0, session.engine.embed(document), document.positions)[-1]
        )

    base = logits(ids)
    for at in range(len(ids)):
        changed = list(ids)
        changed[at] = ids[at] + 1 if ids[at] + 1 < 320 else ids[at] - 1
        assert (logits(changed) - base).abs().max() > 1e-4, at


def test_a_turn_that_is_too_long_by_what_is_heard_disturbs_no_answer(session: Session) -> None:
    clip = np.random.default_rng(0).normal(0, 0.1, 6_400).astype(np.float32)
    before = session.stream("the cat", speak=False, max_new_tokens=8)
    next(before)
    # BOS, USER, EOS, ASSISTANT, five frames, an answer of one token and its EOS: without what is heard it would fit.
    text = "a"
    while len(session.tokenizer.encode(text)) < 128 - 11:
        text += " ?"
    assert len(session.tokenizer.encode(text)) == 117
    with pytest.raises(TokenBudgetError, match=r"\+ [1-9] heard tokens"):
        session.stream(text, audio=clip, speak=False)
    again = session.another().stream("the cat", speak=False, max_new_tokens=8)
    list(before)
    list(again)
    assert before.ids == again.ids and before.reply.ended != "interrupted"
