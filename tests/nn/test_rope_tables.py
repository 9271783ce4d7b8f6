"""Rotary tables and packed positions."""

import math

import pytest
import torch

from muomni.nn.rope import frequency_axes, packed_positions, rotary_tables, segment_ids


@pytest.mark.parametrize("sections", [(2, 1, 1), (1, 1, 1), (4, 3, 1)])
def test_tm_rope_with_equal_positions_is_bit_for_bit_one_dimensional(sections: tuple[int, int, int]) -> None:
    positions = torch.arange(300)
    flat = rotary_tables(positions, head_dim=32, theta=10_000.0)
    tm = rotary_tables(positions[:, None].expand(-1, 3), head_dim=32, theta=10_000.0, sections=sections)
    assert torch.equal(flat[0], tm[0])
    assert torch.equal(flat[1], tm[1])


def test_tables_match_the_closed_form() -> None:
    cos, sin = rotary_tables(torch.tensor([0, 1, 500]), head_dim=8, theta=100.0)
    for row, position in enumerate((0, 1, 500)):
        for i in range(4):
            angle = position * 100.0 ** (-2 * i / 8)
            assert cos[row, i].item() == pytest.approx(math.cos(angle), abs=1e-4)
            assert sin[row, i].item() == pytest.approx(math.sin(angle), abs=1e-4)


def test_each_frequency_turns_with_its_own_axis_only() -> None:
    axes = frequency_axes(16, (2, 1, 1))
    assert [axes.count(axis) for axis in range(3)] == [8, 4, 4]
    base = rotary_tables(torch.zeros(1, 3, dtype=torch.int64), head_dim=32, theta=1e4, sections=(2, 1, 1))[1]
    for axis in range(3):
        positions = torch.zeros(1, 3, dtype=torch.int64)
        positions[0, axis] = 3
        moved = rotary_tables(positions, head_dim=32, theta=1e4, sections=(2, 1, 1))[1] != base
        assert moved[0].tolist() == [a == axis for a in axes]


def test_packed_positions_start_anew_in_every_document_and_ignore_padding_entries() -> None:
    cu_seqlens = torch.tensor([0, 3, 3, 7, 7, 7], dtype=torch.int32)
    assert packed_positions(cu_seqlens, 7).tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert segment_ids(cu_seqlens, 7).tolist() == [0, 0, 0, 2, 2, 2, 2]
    assert segment_ids(cu_seqlens, 9).tolist()[7:] == [5, 5]


def test_wrong_shape_of_positions_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected \(T, 3\)"):
        rotary_tables(torch.zeros(4), head_dim=8, theta=1e4, sections=(1, 1, 1))
