"""Films in a turn: what is seen and heard when decides the answer; what does not fit is said."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muomni.config import TokenBudgetError
from muomni.data.film import Video
from muomni.data.media import MediaError
from muomni.data.template import Film, Turn, render
from muomni.infer.inputs import read_clip, read_film, read_picture
from muomni.infer.request import RequestError
from muomni.infer.session import Session, load


def _frames(n: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, 40, 30, 3), dtype=np.uint8))


def _sound(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)


def _state(session: Session, **said: Any) -> torch.Tensor:
    """State (d_model,) of the last position of a first turn's prompt."""
    seen: list[torch.Tensor] = []
    fresh, begin = session.another(), session.engine.decoder.begin

    def watched(row: int, hidden: torch.Tensor, place: int, **how: Any) -> int:
        seen.append(hidden.clone())
        return begin(row, hidden, place, **how)

    session.engine.decoder.begin = watched  # type: ignore[method-assign]
    fresh.stream("the cat", speak=False, max_new_tokens=2, **said).close()
    session.engine.decoder.begin = begin  # type: ignore[method-assign]
    return seen[0]


def _video(**changes: Any) -> Video:
    return Video(
        **({"frames": _frames(3), "frame_times": [0.2, 0.8, 1.4], "waveform": _sound(1.6)} | changes)
    )


@pytest.fixture(params=[1, 5])
def grids(request: pytest.FixtureRequest, write_run: Any, small_config: Any, tmp_path: Path) -> Session:
    """A conversation whose pictures are one position each, or five with rows and columns of their own."""
    vision = dataclasses.replace(small_config().vision, n_image_tokens=request.param)
    write_run(tmp_path, vision=vision, max_seq_len=256)
    return load(tmp_path, device="cpu")


@torch.no_grad()
def test_a_turn_is_its_document_by_the_full_forward(grids: Session) -> None:
    """Pictures before frames, clips before sound, each on its slot: against the packed forward of training."""
    session, n_image_tokens = grids, grids.config.vision.n_image_tokens
    picture, clip, video = _frames(1, 7)[0], _sound(0.4, 8), _video()
    stated = _state(session, image=picture, audio=clip, video=[video, _video(frames=_frames(3, 5))])
    config, model = session.config, session.engine.model
    # 12.5 steps a second: 0.2 s is step 2 (2.5 to even), 0.8 s 10, 1.4 s 18 (17.5 to even); 1.6 s are 20.
    film = Film(frames=[2, 10, 18], n_audio=20, n_steps=20)
    ids = session.tokenizer.encode("the cat")
    spelled = [
        session.tokenizer.encode(session.transcribe(sound)) for sound in (clip, _sound(1.6), _sound(1.6))
    ]
    assert all(spelled)
    document = render(
        [Turn(text=ids, n_images=1, clips=[5], films=[film, film], heard=spelled)], n_image_tokens=n_image_tokens,
        max_seq_len=1_024,
    )  # fmt: skip
    time, height, width = document.positions.T
    assert bool((time != height).any() and (height != width).any()) == (n_image_tokens > 1)
    embeds = model.thinker.embed(document.input_ids)
    pictures = [read_picture(p, config) for p in [picture, *_frames(3), *_frames(3, 5)]]
    embeds[document.image_slots] = model.vision_projector(model.vision(torch.cat(pictures))).flatten(0, 1)
    heard = []
    for waveform in (clip, _sound(1.6), _sound(1.6)):
        frames = read_clip(waveform, config)
        bounds = torch.tensor([0, len(frames)], dtype=torch.int32)
        heard.append(model.audio_projector(model.audio(frames, bounds, len(frames))))
    embeds[document.audio_slots] = torch.cat(heard)
    cu_seqlens = torch.tensor([0, len(document)], dtype=torch.int32)
    whole = model.thinker(embeds, document.positions, cu_seqlens, len(document))
    torch.testing.assert_close(stated, whole[-1], atol=1e-5, rtol=1e-5)


def test_every_frame_and_the_sound_and_every_time_change_the_state(session: Session) -> None:
    base = _state(session, video=_video())
    assert torch.equal(_state(session, video=_video()), base)
    others = [_video(frames=[f if i != j else 255 - f for j, f in enumerate(_frames(3))]) for i in range(3)]
    others += [
        _video(waveform=_sound(1.6, 1)),
        _video(waveform=None),
        _video(frame_times=[0.2, 0.8, 1.2]),
        _video(frames=_frames(3)[::-1]),
        _video(seconds=9.0),
    ]
    for other in others:
        assert not torch.allclose(base, _state(session, video=other), atol=1e-5)


def test_times_alone_change_the_state_without_sound(session: Session) -> None:
    """The same tokens in the same order: only the clock differs."""
    slow, fast = (
        _state(session, video=_video(waveform=None, frame_times=times, seconds=8.0))
        for times in ([1.0, 4.0, 7.0], [1.0, 2.0, 3.0])
    )
    assert not torch.allclose(slow, fast, atol=1e-5)


def test_a_second_turn_after_a_film_equals_one_prefill(session: Session) -> None:
    session.chat("the cat", video=_video(), speak=False, max_new_tokens=4)
    session._settle()
    fresh = session.another()
    fresh._conversation.turns = list(session._conversation.turns)
    second, again = (
        s.stream("who is it", speak=False, max_new_tokens=6, temperature=1.0, seed=3)
        for s in (session, fresh)
    )
    list(second)
    list(again)
    assert second.ids == again.ids


def test_sound_longer_than_a_clip_is_cut_and_said(session: Session) -> None:
    """The small model hears 32 positions: 2.56 s."""
    video = _video(frame_times=[0.5, 2.0, 3.5], waveform=_sound(4.0))
    with pytest.warns(UserWarning, match=r"the first 2\.56 s are heard, 1\.44 s are not") as caught:
        reply = session.chat("the cat", video=video, speak=False, max_new_tokens=2)
    assert reply.unheard == pytest.approx(1.44) and len(caught) == 1
    given = read_film(video, session.config)
    assert (given.film.n_audio, given.film.n_steps, list(given.film.frames)) == (32, 50, [6, 25, 44])
    assert session.chat("who", speak=False, max_new_tokens=2).unheard == 0.0


def test_what_does_not_fit_says_so_and_changes_nothing(session: Session) -> None:
    with pytest.raises(TokenBudgetError, match="at most 128 fit"):
        session.chat(video=Video(_frames(130), np.linspace(0, 5, 130).tolist()))
    with pytest.raises(TokenBudgetError, match=r"give a shorter film"):
        session.chat(video=Video(_frames(1), [5_000.0]))
    with pytest.raises(TokenBudgetError, match=r"96 audio \+ 0 heard tokens"):
        session.chat("the cat sat on the mat " * 4, video=[_video(waveform=_sound(2.56))] * 3)
    assert not session._conversation.turns
    assert session.chat("who", speak=False, max_new_tokens=2).truncated == 0


def test_films_whose_time_is_up_are_forgotten(session: Session) -> None:
    """There are 4,096 rotary positions: two films of 200 s (2,500 positions) are too much time, not too many tokens."""
    video = Video(_frames(1), [100.0], seconds=200.0)
    assert session.chat("the cat", video=video, speak=False, max_new_tokens=2).truncated == 0
    assert session.chat("the cat", video=video, speak=False, max_new_tokens=2).truncated == 1


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"video": Video([], [])}, MediaError, "expected frames"),
        ({"video": _video(frame_times=[0.0, 1.0])}, MediaError, "as many frame_times, got 3 and 2"),
        ({"video": _video(frame_times=[0.0, 2.0, 1.0])}, MediaError, "in order"),
        ({"video": _video(frame_times=[-1.0, 0.0, 1.0])}, MediaError, "from 0 on"),
        ({"video": _video(frame_times=[0.0, 1.0, float("nan")])}, MediaError, "from 0 on"),
        ({"video": _video(seconds=1.0)}, MediaError, "at least the last frame's time"),
        ({"video": _video(waveform=np.full(2_000, np.nan, np.float32))}, MediaError, "not finite"),
        ({"video": _video(frames=[np.zeros((3, 4))] * 3)}, MediaError, r"\(H, W, 3\) uint8"),
        ({"video": b"no film"}, MediaError, "not a readable film"),
    ],
)
def test_bad_films_are_one_line(session: Session, said: dict, error: type[Exception], words: str) -> None:
    if isinstance(said["video"], bytes):
        pytest.importorskip("av", reason="PyAV is not installed: muomni[video]")
    with pytest.raises(error, match=words) as caught:
        session.chat(**said)
    assert "\n" not in str(caught.value)


def test_a_picture_or_a_film_is_described(session: Session) -> None:
    assert isinstance(session.describe(video=_video(), max_new_tokens=4), str)
    assert isinstance(session.describe(_frames(1)[0], max_new_tokens=4), str)
    assert not session._conversation.turns
    for media in ({}, {"image": _frames(1)[0], "video": _video()}):
        with pytest.raises(RequestError, match="one of them"):
            session.describe(**media)


def test_a_file_is_its_frames_and_sound(session: Session, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: muomni[video]")
    sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
    import film_files

    path = tmp_path / "a film.mp4"
    path.write_bytes(film_files.film(seconds=2.0))
    given = read_film(path, session.config)
    # Two parts of a second each, their middles at 0.5 s and 1.5 s: steps 6.25 and 18.75.
    assert (list(given.film.frames), given.film.n_audio, given.film.n_steps) == ([6, 19], 25, 25)
    assert given.images.shape == (2, 3, 32, 32) and given.unheard == 0.0
    left = given.images[:, :, 10:22, 4:12].mean(dim=(2, 3)) * 127.5 + 127.5
    torch.testing.assert_close(left, torch.tensor(film_files.COLOURS[:2]).float(), atol=25, rtol=0)
    base = _state(session, video=path)
    path.write_bytes(film_files.film(seconds=2.0, audio=None))
    assert not torch.allclose(base, _state(session, video=path.read_bytes()), atol=1e-5)


def test_of_a_film_that_goes_on_in_silence_only_its_sound_is_unheard(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small model hears 2.56 s."""
    video = _video(frame_times=[0.5, 2.0, 3.5], waveform=_sound(4.0), seconds=30.0)
    assert read_film(video, session.config).unheard == pytest.approx(1.44)
    pytest.importorskip("av", reason="PyAV is not installed: muomni[video]")
    sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
    import film_files

    write_tone = film_files._write_tone

    def shorter(output: Any, track: Any, seconds: float, *rest: Any) -> None:
        write_tone(output, track, seconds - 3, *rest)

    monkeypatch.setattr(film_files, "_write_tone", shorter)
    for kind in ({}, film_files.KINDS["mkv h264 flac"]):
        film = film_files.film(**kind, seconds=9.0)
        # The last block of a coder is filled up: 1,024 samples of 48 kHz for AAC, 4,608 for FLAC.
        assert read_film(film, session.config).unheard == pytest.approx(6.0 - 2.56, abs=0.1)


@pytest.mark.parametrize(
    ("seconds", "n"), [(0.0, 1), (0.9, 1), (1.0, 1), (2.9, 2), (8.0, 8), (9.0, 8), (3_600.0, 8)]
)
def test_one_frame_a_second_and_at_most_eight_are_taken(session: Session, seconds: float, n: int) -> None:
    assert session.config.film_frames(seconds) == n
