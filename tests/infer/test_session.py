"""Turns: decoding against full forwards, streams against whole turns, several turns against one prefill."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from muomni.config import TokenBudgetError
from muomni.data.media import MediaError
from muomni.data.template import Turn, render
from muomni.infer.inputs import read_clip
from muomni.infer.sampling import Sampling
from muomni.infer.session import RequestError, Session
from muomni.infer.speech import pieces
from muomni.infer.stream import collect
from muomni.infer.turn import TurnStream
from muomni.models.script import MAX_ADVANCE, Text
from muomni.tokens import EOS, N_SPECIAL


def _picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _clip(seconds: float = 0.4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)


def _heard(session: Session) -> list[list[int]]:
    """What its ear spells of the clip, as ids; something, though nothing is trained."""
    text = session.transcribe(_clip())
    assert text
    return [session.tokenizer.encode(text)]


def _full_forward(session: Session, turns: list[Turn], images: list, clips: list) -> torch.Tensor:
    """Logits of every position by the packed training forward, media placed on their slots."""
    model = session.engine.model
    document = render(turns, n_image_tokens=1, max_seq_len=1_024)
    embeds = model.thinker.embed(document.input_ids)
    if images:
        features = model.vision_projector(model.vision(torch.cat(images))).flatten(0, 1)
        embeds[document.image_slots] = features
    if clips:
        bounds = torch.tensor([0, *np.cumsum([len(c) for c in clips])], dtype=torch.int32)
        hidden = model.audio(torch.cat(clips), bounds, max(len(c) for c in clips))
        embeds[document.audio_slots] = model.audio_projector(hidden)
    cu_seqlens = torch.tensor([0, len(document)], dtype=torch.int32)
    return model.thinker.logits(model.thinker(embeds, document.positions, cu_seqlens, len(document)))


def _asked(session: Session, *arguments: Any, **settings: Any) -> tuple[TurnStream, torch.Tensor]:
    """A stream, and the state (d_model,) of its prompt's last position."""
    seen: list[torch.Tensor] = []
    begin = session.engine.decoder.begin

    def watched(row: int, hidden: torch.Tensor, place: int, **how: Any) -> int:
        seen.append(hidden.clone())
        return begin(row, hidden, place, **how)

    session.engine.decoder.begin = watched  # type: ignore[method-assign]
    stream = session.stream(*arguments, **settings)
    session.engine.decoder.begin = begin  # type: ignore[method-assign]
    return stream, seen[0]


def _argmax(logits: torch.Tensor) -> int:
    logits = logits.clone()
    logits[[i for i in range(N_SPECIAL) if i != EOS]] = -torch.inf
    return int(logits.argmax())


@torch.no_grad()
def test_greedy_turns_equal_argmax_of_the_full_forward(session: Session) -> None:
    from muomni.infer.inputs import read_picture

    image, frames = read_picture(_picture(), session.config), read_clip(_clip(), session.config)
    ids = session.tokenizer.encode("the cat")
    turns = [Turn(text=ids, n_images=1, clips=[len(frames)], heard=_heard(session))]
    asked: tuple[tuple[str, dict[str, Any]], ...] = (
        ("the cat", {"image": _picture(), "audio": _clip()}),
        ("who is it", {}),
    )
    for text, media in asked:
        stream = session.stream(text, speak=False, max_new_tokens=8, **media)
        for _ in stream:
            pass
        answer: list[int] = []
        while len(answer) < 8:
            open_turns = [*turns[:-1], turns[-1]]
            logits = _full_forward(session, open_turns, [image], [frames]) if not answer else None
            if logits is None:
                last = turns[-1]
                closed = dataclasses.replace(last, answer=answer)
                # The rendered document ends with EOS; the position before it predicts the next token.
                logits = _full_forward(session, [*turns[:-1], closed], [image], [frames])[:-1]
            token = _argmax(logits[-1])
            if token == EOS:
                break
            answer.append(token)
        assert stream.ids == answer
        turns[-1] = dataclasses.replace(turns[-1], answer=answer)
        turns.append(Turn(text=session.tokenizer.encode("who is it")))


@torch.no_grad()
def test_prefill_and_decode_give_the_logits_of_the_full_forward(session: Session) -> None:
    sampler, seen = session.engine.decoder.sampler, []

    def watched(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        seen.append(logits[0])
        return sampler(logits, rows)

    session.engine.decoder.sampler = watched  # type: ignore[assignment]
    watched.replace = sampler.replace  # type: ignore[attr-defined]
    stream = session.stream(
        "the cat sat", audio=_clip(), speak=False, max_new_tokens=12, temperature=1.0, seed=5
    )
    frames = read_clip(_clip(), session.config)
    for _ in stream:
        pass
    ids = session.tokenizer.encode("the cat sat")
    turn = Turn(text=ids, clips=[len(frames)], heard=_heard(session), answer=stream.ids)
    full = _full_forward(session, [turn], [], [frames])
    n = len(seen)
    assert n > 2
    # The first logits are those of [ASSISTANT], the position before the answer.
    start = len(full) - len(stream.ids) - 2
    torch.testing.assert_close(torch.stack(seen), full[start : start + n], atol=1e-5, rtol=1e-5)


def test_stream_concatenates_to_the_turn(session: Session) -> None:
    settings: dict[str, Any] = {"image": _picture(), "max_new_tokens": 10, "temperature": 1.0, "seed": 2}
    stream = session.stream("the cat", **settings)
    chunks = list(stream)
    text, pcm = collect(chunks)
    assert (text, len(pcm) > 0) == (stream.reply.text, True)
    assert np.array_equal(pcm, stream.reply.audio.waveform)
    session.reset()
    reply = session.chat("the cat", **settings)
    assert reply.text == text
    assert np.array_equal(reply.audio.waveform, pcm)
    first_sound = next(i for i, c in enumerate(chunks) if len(c.pcm))
    last_text = max(i for i, c in enumerate(chunks) if c.text)
    assert first_sound < last_text, "speech waits for the end of the text"


def test_speech_is_the_codes_decoded_offline(session: Session) -> None:
    reply = session.chat("the cat", max_new_tokens=6, temperature=1.0, seed=2)
    model = session.engine.model
    codes = torch.from_numpy(reply.codes)[None]
    mel = session.config.mel
    with torch.no_grad():
        state = model.codec.new_state(1)
        stepped = torch.cat([model.codec.decode_step(c, state) for c in codes.split(1, dim=2)], dim=1)
        torch.testing.assert_close(stepped, model.codec.decode(codes), atol=1e-5, rtol=1e-5)
        # Phases fitted to magnitudes are chaotic in the last bits, so the vocoder gets the stepped frames.
        offline = model.vocoder(stepped.reshape(-1, mel.n_mels) * mel.std + mel.mean).clamp(-1, 1).numpy()
    assert reply.codes.shape[1] * 1_280 == len(reply.audio.waveform)
    np.testing.assert_allclose(reply.audio.waveform, offline, atol=1e-5)


@torch.no_grad()
def test_greedy_speech_equals_argmax_of_the_teacher_forced_talker(session: Session) -> None:
    engine, ids = session.engine, session.tokenizer.encode("the cat sat")
    states, embeds = engine.spoken_states([40, 41], ids)
    talker, spelled = engine.model.talker, [session.tokenizer.spell(token) for token in ids]
    voice = talker.voice()
    speech, _ = session._speech(Sampling(), 0, voice=voice)
    for told in zip(states, embeds, spelled, strict=True):
        speech.add(*told)
    speech.end()
    while speech.ready:
        speech.frame()
    speech.flush()
    codes = torch.from_numpy(speech.codes)[None]  # type: ignore[arg-type]
    assert speech.finished and codes.shape[:2] == (1, 8) and codes.shape[2] > 2
    text, places = Text.of(states, embeds, spelled), [0]
    for _ in range(codes.shape[2]):
        # The whole text is there, and the place of a frame is what the frames before it make it.
        known = torch.tensor(places + [len(text.characters)] * (codes.shape[2] + 1 - len(places)))
        out = talker(codes, (talker.script(*text.at(known)) + voice)[None])
        moved = talker.advance(out["hidden"][0]).softmax(-1) @ torch.arange(MAX_ADVANCE + 1.0)
        places.append(int(0.5 + float(moved[: len(places)].sum())))
    assert places[-2] <= len(text.characters) < places[-1]
    best = [talker.codes.logits(q, k).argmax(-1) for k, q in enumerate(out["queries"][0].unbind(1))]
    assert torch.equal(torch.stack(best), codes[0])


def test_timings_are_in_order(session: Session) -> None:
    times: dict[str, Any] = session.chat("the cat", max_new_tokens=6).timings
    assert 0 < times["first_text"] <= times["first_audio"] <= times["total"]
    assert times["audio_seconds"] == pytest.approx(times["n_frames"] * 0.08)


def test_several_turns_equal_one_prefill(session: Session) -> None:
    first = session.stream("the cat", image=_picture(), speak=False, max_new_tokens=5)
    list(first)
    second, hidden = _asked(session, "and who is it", audio=_clip(), speak=False, max_new_tokens=5)
    list(second)
    fresh = session.another()
    fresh._conversation.turns = session._conversation.turns[:1]
    again, same = _asked(fresh, "and who is it", audio=_clip(), speak=False, max_new_tokens=5)
    torch.testing.assert_close(same, hidden, atol=1e-5, rtol=1e-5)
    list(again)
    assert again.ids == second.ids


def test_history_changes_the_answer_and_reset_forgets_it(session: Session) -> None:
    _, alone = _asked(session, "the cat", speak=False, max_new_tokens=4)
    session.reset()
    session.chat("press one", image=_picture(), speak=False, max_new_tokens=4)
    _, later = _asked(session, "the cat", speak=False, max_new_tokens=4)
    assert not torch.allclose(alone, later, atol=1e-3)
    session.reset()
    assert torch.equal(_asked(session, "the cat", speak=False)[1], alone)


def test_every_part_of_the_prompt_changes_the_state(session: Session) -> None:
    def state(**media: object) -> torch.Tensor:
        session.reset()
        return _asked(session, speak=False, **media)[1]

    base = state(text="the cat sat", image=_picture(), audio=_clip())
    for other in (
        state(text="who cat sat", image=_picture(), audio=_clip()),
        state(text="the cat sat", image=_picture(1), audio=_clip()),
        state(text="the cat sat", image=_picture(), audio=_clip(seed=1)),
    ):
        assert not torch.allclose(base, other, atol=1e-4)


def test_oldest_turns_are_forgotten_whole_and_reported(session: Session) -> None:
    truncated = [
        session.chat("the cat sat on the mat", speak=False, max_new_tokens=24).truncated for _ in range(6)
    ]
    assert truncated[0] == 0
    assert sum(truncated) > 0
    kept = 6 - sum(truncated)
    assert len(session._conversation.turns) == kept
    session._settle()
    remembered = session.another()
    remembered._conversation.turns = list(session._conversation.turns)
    _, a = _asked(session, "who", speak=False, max_new_tokens=24)
    _, b = _asked(remembered, "who", speak=False, max_new_tokens=24)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_stream_left_early_is_remembered_as_far_as_it_was_read(session: Session) -> None:
    stream = session.stream("the cat", max_new_tokens=20, temperature=1.0, seed=4, speak=False)
    next(stream)
    session.chat("who", speak=False, max_new_tokens=2)
    assert session._conversation.turns[0].turn.answer == tuple(stream.ids)
    assert 1 <= len(stream.ids) < 20
    assert not stream.reply.finished


def test_too_long_a_prompt_says_by_how_much_and_changes_nothing(session: Session) -> None:
    session.chat("the cat", speak=False, max_new_tokens=2)
    with pytest.raises(TokenBudgetError, match=r"at most 128 fit; remove \d+ tokens"):
        session.chat("cat " * 200, speak=False)
    with pytest.raises(TokenBudgetError, match="at most 32"):
        session.chat("the cat", audio=_clip(3.0))
    assert len(session._conversation.turns) == 1
    assert session.chat("who", speak=False, max_new_tokens=2).truncated == 0


def test_a_low_rate_recording_is_resampled(session: Session) -> None:
    time = np.arange(8_000) / 8_000
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * 440 * time), 8_000, format="WAV")
    frames = read_clip(file.getvalue(), session.config)
    assert frames.shape == (13, 8 * 128)
    at_16k = read_clip(
        (0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.float32), session.config
    )
    # 440 Hz lies where resampling changes nothing: the loudest band is the same in every frame.
    loudest = [f[4:11].reshape(-1, 128).argmax(-1).unique().tolist() for f in (frames, at_16k)]
    assert loudest[0] == loudest[1]
    assert isinstance(session.transcribe(file.getvalue()), str)


def test_bad_requests_are_one_line(session: Session, tmp_path: object) -> None:
    requests: tuple[tuple[type[Exception], dict[str, Any]], ...] = (
        (RequestError, {}),
        (RequestError, {"text": ""}),
        (RequestError, {"text": "a", "max_new_tokens": 0}),
        (MediaError, {"image": b"no picture"}),
        (MediaError, {"image": np.zeros((3, 4))}),
        (MediaError, {"audio": np.full(2_000, np.nan)}),
        (MediaError, {"audio": f"{tmp_path}/none.wav"}),
    )
    for error, request in requests:
        with pytest.raises(error) as caught:
            session.chat(**request)
        assert "\n" not in str(caught.value)


def test_text_is_never_cut_inside_a_character(session: Session, scripted: Callable) -> None:
    text = "naïve café ☕ 日本"
    scripted(session, text)
    stream = session.stream("say it", speak=False, max_new_tokens=90)
    pieces = [chunk.text for chunk in stream]
    assert len(pieces) > 5
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.reply.finished


def test_control_tokens_are_never_written(session: Session) -> None:
    stream = session.stream("the cat", speak=False, max_new_tokens=100, temperature=50.0, seed=1)
    list(stream)
    assert stream.ids
    assert min(stream.ids) >= N_SPECIAL


def test_same_seed_and_text_repeat_speech_and_another_text_changes_it(session: Session) -> None:
    first = session.speak("the cat", seed=1).waveform
    assert np.array_equal(first, session.speak("the cat", seed=1).waveform)
    other = session.speak("who is it", seed=1).waveform
    assert len(first) != len(other) or not np.array_equal(first, other)
    with pytest.raises(RequestError, match="nothing to say"):
        session.speak("")


@given(text=st.text(alphabet="ab .,!?;é語☕🐈\n\u2003", max_size=80), most=st.integers(4, 20))
def test_pieces_are_the_text_in_order_and_short_enough(text: str, most: int) -> None:
    found = pieces(text, most)
    assert "".join("".join(found).split()) == "".join(text.split())
    # Encoding fails where a character was cut.
    assert all(0 < len(piece.encode()) <= most and piece == piece.strip() for piece in found)


def test_a_text_is_cut_behind_sentences_else_behind_their_parts_else_behind_words() -> None:
    assert pieces("One two. Three four! Five", 21) == ["One two. Three four!", "Five"]
    assert pieces("One, two three four five", 12) == ["One,", "two three", "four five"]
    assert pieces("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert pieces("猫が座った", 6) == ["猫が", "座っ", "た"]
    assert pieces("кот сел. пёс тоже", 16) == ["кот сел.", "пёс тоже"]
    assert pieces(" \n", 4) == []


def test_a_long_text_is_said_in_pieces_and_numbers_as_words(session: Session) -> None:
    room = int(0.75 * session.config.max_audio_tokens)
    assert room < 30
    parts = [
        session.speak("the cat sat on it.", seed=4).waveform,
        session.speak("and the dog too", seed=5).waveform,
    ]
    whole = session.speak("the cat sat on it. and the dog too", seed=4).waveform
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-5)
    assert np.array_equal(
        session.speak("4 & 22nd", seed=1).waveform, session.speak("four and twenty-second", seed=1).waveform
    )


def test_speech_that_is_cut_is_told(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.engine.model.talker, "mean_advance", lambda hidden: hidden.new_zeros(1))
    with pytest.warns(UserWarning, match=r"speak: 'the cat' is cut after 2\.56 s"):
        said = session.speak("the cat").waveform
    assert len(said) == session.config.max_audio_samples
    reply = session.chat("the cat", max_new_tokens=5)
    assert not reply.spoken and reply.codes.shape[1] == session.config.max_audio_tokens


def test_a_voice_changes_the_speech_and_an_unknown_one_is_told(session: Session) -> None:
    session.engine.model.talker.voices.name(["ann", "bob"])
    # Untrained voices hardly differ.
    for weight in (session.engine.model.talker.voices.table, session.engine.model.talker.voices.out.weight):
        weight.data *= 50
    assert session.voices == ["ann", "bob"]
    said = {voice: session.speak("the cat", voice=voice, seed=3).waveform for voice in (None, "ann", "bob")}
    assert np.array_equal(said[None], said["ann"]) and not np.array_equal(said["ann"], said["bob"])
    assert np.array_equal(session.speak("the cat", voice="bob", seed=3).waveform, said["bob"])
    imitated = session.speak("the cat", voice_from=_clip(), seed=3).waveform
    assert not np.array_equal(imitated, said["ann"])
    turns = [session.chat("the cat", voice=voice, max_new_tokens=5, seed=3).codes for voice in ("ann", "bob")]
    assert not np.array_equal(*turns)
    with pytest.raises(RequestError, match="voice: 'eve' is not known; there are ann, bob"):
        session.speak("the cat", voice="eve")
    with pytest.raises(RequestError, match="a name or a recording, not both"):
        session.speak("the cat", voice="ann", voice_from=_clip())


def test_the_same_seed_says_other_words_with_other_codes(session: Session) -> None:
    one, other = (session.speak(text, seed=3).waveform for text in ("the cat sat", "who is it"))
    n = min(len(one), len(other))
    assert n and not np.array_equal(one[:n], other[:n])
