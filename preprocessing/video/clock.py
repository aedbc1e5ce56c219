"""The clock of a recording that was joined or whose sender restarted: it is continued.

MPEG transport and program streams, FLV and chained Ogg carry the clock of whoever sent them. It
jumps where two recordings were joined or a sender restarted, and falls to zero after 26.5 hours in
33 bits. As in the ffmpeg program, the frame after a jump begins where the frame before it ended.
"""

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Generic, TypeVar

from av.container import InputContainer
from av.format import Flags

# A smaller step ahead is a gap in the recording (the ffmpeg program's bound); a smaller step back
# is two frames out of order.
AHEAD_S, BACK_S = Fraction(10), Fraction(1, 2)

F = TypeVar("F")


def may_restart(container: InputContainer) -> bool:
    """Whether a jump of this container's clock says nothing about the time that passed."""
    # ffmpeg trusts the clock of FLV, whose senders restart too.
    return Flags.ts_discont in Flags(container.format.flags) or container.format.name == "flv"


class Clock(Generic[F]):
    """Makes the stamps of shown frames go on where they jump.

    A jump from which the next frame does not go on is no restart: one stamp went astray.

    Args:
        tick: seconds.
        lasts: ticks for which a frame is shown.
    """

    def __init__(self, tick: Fraction, lasts: Callable[[F], int]) -> None:
        self._ahead, self._back = AHEAD_S / tick, BACK_S / tick
        self._lasts = lasts
        self._offset = 0  # from the file's stamps to continued ones, ticks
        self._last: int | None = None  # continued stamp of the frame before
        self._due = 0  # where that frame ends
        self.restarts = 0

    def continued(self, frames: Iterable[tuple[int | None, F]]) -> Iterator[tuple[int | None, F]]:
        """(stamp, frame) with stamps that go on; takes one frame ahead."""
        ahead = iter(frames)
        now = next(ahead, None)
        while now is not None:
            following = next(ahead, None)
            stated, frame = now
            if stated is None:
                yield now
            else:
                yield self._continued(stated, frame, following[0] if following else stated), frame
            now = following

    def _continued(self, stated: int, frame: F, following: int | None) -> int:
        stamp = stated + self._offset
        if self._last is not None and self._jumps(self._last, stamp):
            if following is None or not self._jumps(stated, following):
                self._offset += self._due - stamp
                self.restarts += 1
            stamp = self._due
        self._last, self._due = stamp, stamp + self._lasts(frame)
        return stamp

    def _jumps(self, before: int, after: int) -> bool:
        return after - before > self._ahead or before - after > self._back
