"""Packing keeps documents whole, shifts labels once, pads where it says; the order is stateless."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data.batch import Media, Order, cumulative, pack
from muomni.data.template import Turn, render, render_text
from muomni.tokens import EOS, IGNORE_INDEX, PAD


def test_labels_are_the_next_token_of_the_same_document() -> None:
    first, second = render_text([20, 21], max_seq_len=8)[0], render_text([22], max_seq_len=8)[0]
    batch = pack([first, second], n_tokens=10, n_docs=3, max_seq_len=8)
    assert batch.labels.tolist() == [20, 21, EOS, IGNORE_INDEX, 22, EOS, *[IGNORE_INDEX] * 4]
    assert batch.input_ids[7:].tolist() == [PAD] * 3
    assert batch.n_tokens == 7 and batch.fill_rate == 0.7
    assert batch.cu_seqlens[:4].tolist() == [0, 4, 7, 10]


def test_media_features_point_at_their_placeholders_and_padding_at_the_end() -> None:
    documents = [
        render([Turn(n_images=1, clips=[2], answer=[30])], n_image_tokens=1, max_seq_len=16),
        render([Turn(n_images=1, answer=[31])], n_image_tokens=1, max_seq_len=16),
    ]
    media = [
        Media(images=(torch.full((3, 2, 2), 1.0),), clips=(torch.full((2, 4), 5.0),)),
        Media(images=(torch.full((3, 2, 2), 2.0),)),
    ]
    batch = pack(
        documents, media, n_tokens=32, n_docs=4, max_seq_len=16, n_images=3, image_shape=(3, 2, 2),
        n_audio=6, n_clips=2, max_clip=4, frame_width=4,
    )  # fmt: skip
    assert batch.images is not None and batch.image_index is not None and batch.audio_cu_seqlens is not None
    assert batch.images[:, 0, 0, 0].tolist() == [1.0, 2.0, 0.0]
    assert batch.image_index.tolist() == [2, len(documents[0]) + 2, 32]
    assert batch.audio_index is not None and batch.audio_index.tolist() == [3, 4, 32, 32, 32, 32]
    assert batch.audio_cu_seqlens.tolist()[:3] == [0, 2, 6]


def test_media_that_do_not_match_their_placeholders_are_refused() -> None:
    document = render([Turn(n_images=1)], n_image_tokens=1, max_seq_len=16)
    with pytest.raises(ValueError, match="expected 1 image"):
        pack([document], [Media()], n_tokens=32, n_docs=1, max_seq_len=16, n_images=1, image_shape=(3, 2, 2))


@given(st.lists(st.integers(1, 16), max_size=8), st.integers(0, 70))
@settings(max_examples=60, deadline=None)
def test_every_position_belongs_to_one_segment_of_bounded_length(lengths: list[int], spare: int) -> None:
    total = sum(lengths) + spare
    cu = cumulative(lengths, n_max=8, total=total, longest=16).tolist()
    sizes = np.diff(cu)
    assert cu[0] == 0 and cu[-1] == total and (sizes >= 0).all() and (sizes <= 16).all()
    assert sizes[: len(lengths)].tolist() == lengths
    assert len(cu) == 8 + 1 + -(-total // 16)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_an_epoch_holds_every_item_once_within_capacity(lengths: list[int], seed: int) -> None:
    order = Order(lengths, capacity=40, n_items=5, seed=seed)
    rows = order.epoch(2)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 40 and len(row) <= 5 for row in rows)


def test_order_depends_on_seed_and_position_alone() -> None:
    lengths = list(range(1, 30))
    order = Order(lengths, capacity=40, n_items=8, seed=3)
    straight = [row for epoch in range(6) for row in order.epoch(epoch)]
    assert [order.at(position) for position in range(len(straight))] == straight
    for position in (0, 7, 31, 59):
        assert Order(lengths, capacity=40, n_items=8, seed=3).at(position) == straight[position]
    assert Order(lengths, capacity=40, n_items=8, seed=4).at(0) != straight[0]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2)), min_size=1, max_size=60),
    st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_pieces_are_the_batch_in_order_and_fit_their_room(lengths: list[tuple[int, int]], parts: int) -> None:
    order = Order(lengths, capacity=(64, 6), n_items=9)
    capacity, n_items = order.room(parts)
    for row in order.epoch(0):
        pieces = order.pieces(row, parts)
        assert list(itertools.chain(*pieces)) == row
        for piece in pieces:
            assert 0 < len(piece) <= n_items
            assert all(sum(lengths[i][r] for i in piece) <= capacity[r] for r in range(2))


def test_two_pieces_of_one_resource_are_enough_and_take_half_the_room() -> None:
    order = Order([3, 9, 4, 7, 6, 2, 8] * 9, capacity=100, n_items=64)
    assert order.room(2) == ([100 // 2 + 9], 32)
    assert {len(order.pieces(row, 2)) for row in order.epoch(0)} <= {1, 2}


def test_rows_of_real_lengths_are_filled_over_97_percent() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 60, size=2_000).clip(4, 512).tolist()
    rows = Order(lengths, capacity=2_048, n_items=96, seed=0).epoch(0)
    assert sum(lengths) / (2_048 * len(rows)) > 0.97
