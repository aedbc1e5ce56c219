"""A length of frames or pixels cut into overlapping pieces that fade into one another.

The same arithmetic serves portions of frames and tiles of pixels. A network computes each piece
with neighbours on either side; what lies nearest to the cut lacks neighbours and is dropped, the
rest fades linearly into the next piece. All pieces have one size: a network sees as many frames
as it was trained on, and is compiled once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is computed at once, [low, high), and how much each place of it counts.

    Over all pieces, the weights of a place sum to 1.
    """

    low: int
    high: int
    weights: Tensor  # (high - low), in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Pieces of `size` places, or of all where there are fewer.

    Attributes:
        total: places there are.
        overlap: places at each end of a piece that its neighbour has too; the last piece, moved
            inward to end where all ends, shares more. Less than half of `size`.
        blend: places at a border over which the one piece fades into the other; at most twice the
            overlap.
        grain: pieces begin at multiples of it, as `size` and `overlap` are; where `total` is not,
            the last piece is shorter by the rest.
    """

    total: int
    size: int
    overlap: int
    blend: int
    grain: int = 1

    @property
    def core(self) -> int:
        """Places from the beginning of a piece to that of the next."""
        return self.size - 2 * self.overlap

    @property
    def count(self) -> int:
        """How many pieces there are."""
        return 1 + max(0, -(-(self.total - self.size) // self.core))

    def piece(self, number: int) -> Piece:
        """Piece `number`, of `count`."""
        last = self.grain * max(0, -(-(self.total - self.size) // self.grain))
        low = min(number * self.core, last)
        high = min(self.total, low + self.size)
        places = torch.arange(low, high)
        weights = self._risen(number, places) - self._risen(number + 1, places)
        return Piece(low=low, high=high, weights=weights)

    def pieces(self) -> list[Piece]:
        """All of them, in order."""
        return [self.piece(number) for number in range(self.count)]

    def showing(self, low: int, high: int) -> range:
        """Numbers of the pieces that count anywhere in [low, high)."""
        ended = self._fades_before(low - self.blend + 1)
        return range(ended, 1 + self._fades_before(high))

    def _fades_before(self, place: int) -> int:
        """How many of the fades into pieces 1, 2, ... begin before `place`: they are evenly
        spaced, so that none need be looked at.
        """
        begun = -(-(place - self._fade(0)) // self.core) - 1
        return min(max(0, begun), self.count - 1)

    def _fade(self, number: int) -> int:
        """Where the fade into piece `number` begins: about the middle of the overlap."""
        return number * self.core + self.overlap - self.blend // 2

    def _risen(self, number: int, places: Tensor) -> Tensor:
        """How far the fade into piece `number` has come at each place; piece 0 has no before."""
        if number == 0:
            return torch.ones(len(places))
        if number == self.count:
            return torch.zeros(len(places))
        return ((places - self._fade(number) + 1) / (self.blend + 1)).clamp(0, 1)


def tiles(total: int, *, side: int | None, overlap: int, grain: int) -> Cut:
    """One side of a frame cut into tiles of at most `side` places (or one grain, if that is more),
    the inner half of the overlap faded.

    Args:
        side: None: one tile.
        grain: tiles begin at multiples of it, so that a network that shrinks by it sees the same
            grid in a tile as in the whole.
    """
    if side is None or side >= total:
        return Cut(total=total, size=total, overlap=0, blend=0)
    size = max(1, side // grain) * grain
    most = (size - grain) // (2 * grain) * grain
    overlap = min(-(-overlap // grain) * grain, most)
    return Cut(total=total, size=size, overlap=overlap, blend=overlap, grain=grain)
