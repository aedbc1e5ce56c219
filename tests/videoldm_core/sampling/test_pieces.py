"""Pieces cover a length once: every place has weight 1 in all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videoldm_core.sampling.pieces import Cut, tiles


def total_weights(cut: Cut) -> torch.Tensor:
    weights = torch.zeros(cut.total)
    for number in range(cut.count):
        piece = cut.piece(number)
        assert 0 <= piece.low < piece.high <= cut.total
        assert ((piece.weights >= 0) & (piece.weights <= 1)).all()
        weights[piece.low : piece.high] += piece.weights
    return weights


@given(
    total=st.integers(1, 70),
    size=st.integers(1, 20),
    overlap=st.integers(0, 9),
    blend=st.integers(0, 18),
)
def test_weights_of_all_pieces_sum_to_one_at_every_place(total, size, overlap, blend):
    cut = Cut(total=total, size=size, overlap=overlap, blend=min(blend, 2 * overlap, size))
    torch.testing.assert_close(total_weights(cut), torch.ones(total), atol=1e-6, rtol=0)


@given(
    total=st.integers(1, 70),
    side=st.integers(1, 40),
    overlap=st.integers(0, 9),
    grain=st.sampled_from([1, 2, 4, 8]),
)
def test_tiles_cover_a_side_and_begin_on_the_grain(total, side, overlap, grain):
    cut = tiles(total, side=side, overlap=overlap, grain=grain)
    torch.testing.assert_close(total_weights(cut), torch.ones(total), atol=1e-6, rtol=0)
    assert all(cut.piece(number).low % grain == 0 for number in range(cut.count))


def test_a_border_fades_linearly_and_the_rest_of_the_overlap_is_dropped():
    cut = Cut(total=16, size=8, overlap=3, blend=2)
    first, second = cut.piece(0), cut.piece(1)
    assert (first.low, first.high, second.low, second.high) == (0, 11, 5, 16)
    assert first.weights.tolist() == pytest.approx([1] * 7 + [2 / 3, 1 / 3, 0, 0])
    assert second.weights.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3] + [1] * 7)


@pytest.mark.parametrize("blend", [0, 1, 4, 8])
def test_only_neighbours_count_in_the_core_of_a_piece(blend):
    cut = Cut(total=43, size=8, overlap=4, blend=blend)
    for number in range(cut.count):
        core = range(number * 8, min(43, number * 8 + 8))
        for other in set(range(cut.count)) - set(cut.around(number)):
            piece = cut.piece(other)
            counts = [piece.low + i for i, weight in enumerate(piece.weights) if weight > 0]
            assert not set(core) & set(counts)


def test_one_tile_is_the_whole():
    assert tiles(20, side=None, overlap=8, grain=4) == Cut(total=20, size=20, overlap=0, blend=0)
    assert tiles(20, side=20, overlap=8, grain=4).count == 1
    assert tiles(20, side=19, overlap=8, grain=4).count == 2
