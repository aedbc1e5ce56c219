"""A length of frames or pixels cut into overlapping pieces that fade into one another.

The same arithmetic serves portions of frames and tiles of pixels. A network computes each piece
with neighbours on either side; what lies nearest to the cut lacks neighbours and is dropped, the
rest fades linearly into the next piece.
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
    """Pieces of `size` places, each computed with `overlap` more per side.

    Attributes:
        total: places there are.
        blend: places at a border over which the one piece fades into the other; at most twice the
            overlap, and at most `size`.
    """

    total: int
    size: int
    overlap: int
    blend: int

    @property
    def count(self) -> int:
        """How many pieces there are."""
        return -(-self.total // self.size)

    def piece(self, number: int) -> Piece:
        """The piece whose core begins at `number * size`."""
        start = number * self.size
        low = max(0, start - self.overlap)
        high = min(self.total, start + self.size + self.overlap)
        places = torch.arange(low, high)
        weights = self._risen(number, places) - self._risen(number + 1, places)
        return Piece(low=low, high=high, weights=weights)

    def pieces(self) -> list[Piece]:
        """All of them, in order."""
        return [self.piece(number) for number in range(self.count)]

    def around(self, number: int) -> range:
        """Numbers of the pieces that count anywhere in the core of piece `number`."""
        return range(max(0, number - 1), min(self.count, number + 2))

    def _risen(self, number: int, places: Tensor) -> Tensor:
        """How far the fade into piece `number` has come at each place; piece 0 has no before."""
        if number == 0:
            return torch.ones(len(places))
        if number == self.count:
            return torch.zeros(len(places))
        first = number * self.size - self.blend // 2
        return ((places - first + 1) / (self.blend + 1)).clamp(0, 1)


def tiles(total: int, *, side: int | None, overlap: int, grain: int) -> Cut:
    """One side of a frame cut into tiles of about `side` places, the inner half of the overlap
    faded.

    Args:
        side: None: one tile.
        grain: tiles begin at multiples of it, so that a network that shrinks by it sees the same
            grid in a tile as in the whole.
    """
    if side is None or side >= total:
        return Cut(total=total, size=total, overlap=0, blend=0)
    count = -(-total // side)
    size = grain * -(-total // (count * grain))
    overlap = grain * -(-overlap // grain)
    return Cut(total=total, size=size, overlap=overlap, blend=min(overlap, size))
