"""The template writes the control tokens, targets, positions and slots it says."""

import itertools

import pytest
import torch

from muomni.config import TokenBudgetError
from muomni.data.template import Film, Turn, length, render, render_text
from muomni.tokens import ASSISTANT, AUDIO, BOS, EOS, HEARD, IGNORE_INDEX, IMAGE, USER


def test_turns_are_written_in_the_stated_order() -> None:
    document = render(
        [Turn(text=[20, 21], n_images=1, clips=[3], answer=[30]), Turn(text=[22])],
        n_image_tokens=1,
        max_seq_len=64,
    )
    expected = [
        BOS,
        USER,
        IMAGE,
        AUDIO,
        AUDIO,
        AUDIO,
        20,
        21,
        EOS,
        ASSISTANT,
        30,
        EOS,
        USER,
        22,
        EOS,
        ASSISTANT,
    ]
    assert document.input_ids.tolist() == expected
    assert document.image_slots.tolist() == [2]
    assert document.audio_slots.tolist() == [3, 4, 5]
    assert document.answers == ((10, 11),)


def test_what_the_ear_spells_stands_behind_its_sound_as_text_that_is_no_target() -> None:
    films = [Film(frames=[0]), Film(frames=[1], n_audio=2)]
    # Of the second clip nothing is spelled; the first film has no sound, so the last ids are the second one's.
    turn = Turn(text=[20], clips=[2, 1], films=films, heard=[[40, 41], [], [42]], answer=[30])
    document = render([turn], n_image_tokens=1, max_seq_len=64)
    ids = [
        BOS,
        USER,
        AUDIO,
        AUDIO,
        40,
        41,
        HEARD,
        AUDIO,
        IMAGE,
        AUDIO,
        IMAGE,
        AUDIO,
        42,
        HEARD,
        20,
        EOS,
        ASSISTANT,
        30,
        EOS,
    ]
    assert document.input_ids.tolist() == ids and len(ids) == length([turn], 1)
    assert document.labels[document.labels != IGNORE_INDEX].tolist() == [30, EOS]
    assert document.audio_slots.tolist() == [2, 3, 7, 9, 11]
    # One step each, behind the clip's frames and before the question; a film's behind its end.
    assert (document.positions[:9, 0]).tolist() == list(range(9))
    assert (document.positions[11:, 0].diff() == 1).all()


def test_of_what_is_spelled_no_more_is_written_than_its_sound_has_positions() -> None:
    turn = Turn(clips=[2], films=[Film(frames=[0], n_audio=1)], heard=[[40, 41, 42], [43, 44]])
    ids = [BOS, USER, AUDIO, AUDIO, 40, 41, HEARD, IMAGE, AUDIO, 43, HEARD, EOS, ASSISTANT]
    assert render([turn], n_image_tokens=1, max_seq_len=64).input_ids.tolist() == ids
    assert length([turn], 1) == len(ids) and turn.n_heard == 5


def test_only_the_answer_and_its_end_are_targets() -> None:
    turns = [Turn(text=[20], answer=[30, 31], learn=False), Turn(text=[21], n_images=1, answer=[32, 33])]
    document = render(turns, n_image_tokens=1, max_seq_len=64)
    targets = document.labels[document.labels != IGNORE_INDEX]
    assert targets.tolist() == [32, 33, EOS]
    assert torch.equal(document.labels[-3:], document.input_ids[-3:])


def test_text_and_clips_have_equal_positions_on_the_three_axes() -> None:
    document = render([Turn(text=[20], n_images=1, clips=[2], answer=[30])], n_image_tokens=1, max_seq_len=64)
    assert torch.equal(document.positions, torch.arange(len(document))[:, None].expand(-1, 3))


def test_picture_grid_spreads_over_height_and_width_at_one_time() -> None:
    document = render([Turn(n_images=1)], n_image_tokens=5, max_seq_len=64)
    # BOS 0, USER 1, CLS 2, the 2 x 2 grid at time 3, and the text goes on after its largest position.
    assert document.positions[2:7].tolist() == [[2, 2, 2], [3, 3, 3], [3, 3, 4], [3, 4, 3], [3, 4, 4]]
    assert document.positions[7].tolist() == [5, 5, 5]


def test_overflow_is_an_error_or_a_reported_truncation() -> None:
    turn = Turn(text=list(range(20, 40)), clips=[4], answer=[30])
    with pytest.raises(TokenBudgetError, match="remove 10 tokens"):
        render([turn], n_image_tokens=1, max_seq_len=20)
    document = render([turn], n_image_tokens=1, max_seq_len=20, truncate=True)
    assert len(document) == 20 and document.truncated == 10
    assert len(document.audio_slots) == 4 and document.input_ids[-2] == 30


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 17, 30])
def test_every_token_of_a_long_text_is_a_target_exactly_once(n: int) -> None:
    pieces = render_text(list(range(20, 20 + n)), max_seq_len=10)
    assert max(map(len, pieces)) <= 10
    targets = [p.labels[1:] for p in pieces]
    assert torch.cat(targets).tolist() == [*range(20, 20 + n), EOS]
    assert all(a.input_ids[-1] == b.input_ids[0] for a, b in itertools.pairwise(pieces))


def test_a_film_is_frames_and_sound_in_order_of_time_on_one_clock() -> None:
    film = Film(frames=[0, 2, 2, 7], n_audio=4, n_steps=10)
    document = render([Turn(films=[film], text=[20])], n_image_tokens=1, max_seq_len=64)
    i, a = IMAGE, AUDIO
    assert document.input_ids.tolist() == [BOS, USER, i, a, a, i, i, a, a, i, 20, EOS, ASSISTANT]
    # The film begins at 2; a frame has the position of the sound of its step; the text is behind the film's 10 steps.
    times = [0, 1, 2, 2, 3, 4, 4, 4, 5, 9, 12, 13, 14]
    assert torch.equal(document.positions, torch.tensor(times)[:, None].expand(-1, 3))
    assert document.image_slots.tolist() == [2, 5, 6, 9]
    assert document.audio_slots.tolist() == [3, 4, 7, 8]
    assert (document.labels == IGNORE_INDEX).all()


def test_all_of_a_frame_is_at_the_time_of_its_step() -> None:
    document = render([Turn(films=[Film(frames=[3], n_audio=1)])], n_image_tokens=5, max_seq_len=64)
    # BOS 0, USER 1, the sound of step 0 at 2; CLS at 5, then the grid at time 5 with rows and columns from 6 on.
    assert document.positions[3:8].tolist() == [[5, 5, 5], [5, 6, 6], [5, 6, 7], [5, 7, 6], [5, 7, 7]]
    assert document.positions[8].tolist() == [8, 8, 8]


@pytest.mark.parametrize("n_image_tokens", [1, 5, 17])
@pytest.mark.parametrize(
    "film",
    [Film(frames=[1, 5]), Film(frames=[4], n_audio=9), Film(frames=[2, 30], n_audio=3, n_steps=31)],
)
def test_length_and_slots_of_turns_with_everything(film: Film, n_image_tokens: int) -> None:
    turns = [
        Turn(
            text=[20, 21], n_images=2, clips=[3, 4], films=[film, film], heard=[[40], [41, 42]], answer=[30]
        ),
        Turn(films=[film], text=[22]),
    ]
    document = render(turns, n_image_tokens=n_image_tokens, max_seq_len=1_000)
    assert len(document) == length(turns, n_image_tokens)
    n_frames, n_audio = len(film.frames), film.n_audio
    assert len(document.image_slots) == (2 + 3 * n_frames) * n_image_tokens
    assert len(document.audio_slots) == 7 + 3 * n_audio
    ids = document.input_ids
    assert (ids[document.image_slots] == IMAGE).all() and (ids == IMAGE).sum() == len(document.image_slots)
    assert (ids[document.audio_slots] == AUDIO).all() and (ids == AUDIO).sum() == len(document.audio_slots)
    for slots in (document.image_slots, document.audio_slots):
        assert (slots.diff() > 0).all()
    # The next text is behind every position before it.
    for place in (ids == EOS).nonzero()[:, 0]:
        assert document.positions[: int(place)].max() < document.positions[int(place)].min()
    with pytest.raises(TokenBudgetError, match="a clip or a film"):
        render(turns, n_image_tokens=n_image_tokens, max_seq_len=len(document) - 1)
