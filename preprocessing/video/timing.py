"""When the frames of a video are shown, gathered as they pass: ticks of the container.

Exact, as stamps may be anything, and in memory that does not grow with the frames.
"""

import statistics
from collections import Counter
from fractions import Fraction


class Timing:
    """Distances between the shown frames of one video."""

    def __init__(self) -> None:
        self.frames = 0
        self._first = self._last = 0
        self._gaps: Counter[int] = Counter()

    def add(self, stamp: int) -> None:
        """The next shown frame; later than the one before."""
        if self.frames:
            self._gaps[stamp - self._last] += 1
        else:
            self._first = stamp
        self._last = stamp
        self.frames += 1

    def usual_gap(self, alone: int) -> tuple[Fraction, bool]:
        """(how long an ordinary frame is shown, whether the rate varies).

        Containers round stamps to ticks (33, 34, 33 ms): it is the mean of the gaps near the
        median, not the median.

        Args:
            alone: how long a frame is shown that is the only one.
        """
        if not self._gaps:
            return Fraction(alone), False
        typical = statistics.median(self._gaps.elements())
        near = {gap: n for gap, n in self._gaps.items() if abs(gap - typical) <= 1 + typical / 10}
        count = sum(near.values())
        if not count:  # the median lies between two far apart
            return Fraction(typical), True
        usual = Fraction(sum(gap * n for gap, n in near.items()), count)
        return usual, count < self._gaps.total()

    def span(self, last: Fraction) -> tuple[Fraction, Fraction]:
        """(how long all frames are shown, how long the longest-standing one is).

        Args:
            last: how long the last frame is shown.
        """
        return self._last - self._first + last, Fraction(max([*self._gaps, last]))
