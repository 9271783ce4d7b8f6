"""The template writes the control tokens, targets, positions and slots it says."""

import itertools

import pytest
import torch

from muomni.config import TokenBudgetError
from muomni.data.template import Turn, render, render_text
from muomni.tokens import ASSISTANT, AUDIO, BOS, EOS, IGNORE_INDEX, IMAGE, USER


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
