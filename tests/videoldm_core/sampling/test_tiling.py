"""Pieces cover a length once: every place has weight 1 in all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videoldm_core.sampling.tiling import Cut, tiles


def total_weights(cut: Cut) -> torch.Tensor:
    weights = torch.zeros(cut.total)
    for piece in cut.pieces():
        assert 0 <= piece.low < piece.high <= cut.total
        assert ((piece.weights >= 0) & (piece.weights <= 1)).all()
        weights[piece.low : piece.high] += piece.weights
    return weights


@st.composite
def cuts(draw) -> Cut:
    overlap = draw(st.integers(0, 9))
    return Cut(
        total=draw(st.integers(1, 120)),
        size=2 * overlap + draw(st.integers(1, 12)),
        overlap=overlap,
        blend=draw(st.integers(0, 2 * overlap)),
    )


@given(cuts())
def test_weights_of_all_pieces_sum_to_one_at_every_place(cut: Cut):
    torch.testing.assert_close(total_weights(cut), torch.ones(cut.total), atol=1e-6, rtol=0)


@given(cuts())
def test_every_piece_has_the_same_size(cut: Cut):
    sizes = {piece.high - piece.low for piece in cut.pieces()}
    assert sizes == {min(cut.size, cut.total)}


@given(cuts())
def test_what_counts_has_neighbours_on_either_side_unless_the_length_ends(cut: Cut):
    """Of the overlap of two pieces, all but the blend is dropped, half of it at either side."""
    dropped = cut.overlap - -(-cut.blend // 2)
    for piece in cut.pieces():
        counting = piece.weights.nonzero().flatten() + piece.low
        if piece.low > 0:
            assert counting[0] >= piece.low + dropped
        if piece.high < cut.total:
            assert counting[-1] < piece.high - dropped


@given(cuts(), st.integers(0, 119), st.integers(1, 40))
def test_the_pieces_that_show_a_stretch_are_those_that_count_in_it(cut: Cut, low: int, length: int):
    low = min(low, cut.total - 1)
    stretch = set(range(low, min(cut.total, low + length)))
    counting = {
        number
        for number, piece in enumerate(cut.pieces())
        if stretch & {piece.low + i for i, weight in enumerate(piece.weights) if weight > 0}
    }
    assert set(cut.showing(low, low + length)) == counting


@given(
    total=st.integers(1, 90),
    side=st.integers(1, 40),
    overlap=st.integers(0, 9),
    grain=st.sampled_from([1, 2, 4, 8]),
)
def test_tiles_cover_a_side_and_begin_on_the_grain(total, side, overlap, grain):
    cut = tiles(total, side=side, overlap=overlap, grain=grain)
    torch.testing.assert_close(total_weights(cut), torch.ones(total), atol=1e-6, rtol=0)
    pieces = cut.pieces()
    assert all(piece.low % grain == 0 for piece in pieces)
    sizes = [piece.high - piece.low for piece in pieces]
    assert max(sizes) <= max(side, grain)
    # Only where the whole side is not made of whole grains is the last tile shorter, by the rest.
    assert set(sizes[:-1]) <= {cut.size}
    assert sizes[-1] > min(cut.size, total) - grain
    if total % grain == 0:
        assert set(sizes) == {min(cut.size, total)}


def test_a_border_fades_linearly_and_the_rest_of_the_overlap_is_dropped():
    cut = Cut(total=16, size=11, overlap=3, blend=2)
    first, second = cut.piece(0), cut.piece(1)
    assert (first.low, first.high, second.low, second.high) == (0, 11, 5, 16)
    assert first.weights.tolist() == pytest.approx([1] * 7 + [2 / 3, 1 / 3, 0, 0])
    assert second.weights.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3] + [1] * 7)


def test_the_last_piece_is_moved_inward():
    """113 frames in portions of 8: none of 3."""
    pieces = Cut(total=113, size=8, overlap=2, blend=2).pieces()
    assert [(piece.low, piece.high) for piece in pieces[:2]] == [(0, 8), (4, 12)]
    assert [(piece.low, piece.high) for piece in pieces[-2:]] == [(104, 112), (105, 113)]


def test_one_tile_is_the_whole():
    assert tiles(20, side=None, overlap=8, grain=4) == Cut(total=20, size=20, overlap=0, blend=0)
    assert tiles(20, side=20, overlap=8, grain=4).count == 1
    assert tiles(20, side=19, overlap=8, grain=4).count == 2
