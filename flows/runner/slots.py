"""Slots for jobs that need an accelerator: who comes first in the table is served first."""

import contextlib
import threading
from collections.abc import Iterator

from flows.launch import Cancelled

SETTLE_S = 0.3  # jobs set free by the same event arrive within this time, in any order


class Slots:
    """As many jobs at a time as there are slots."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[int] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, place: int, cancelled: threading.Event) -> Iterator[None]:
        """Holds a slot inside the block; of those who wait, the lowest `place` is served first.

        Raises:
            Cancelled: `cancelled` was set while waiting.
        """
        with self._changed:
            self._waiting.append(place)
        try:
            self._settle(cancelled)
            with self._changed:
                while not (self._free and min(self._waiting) == place):
                    if cancelled.is_set():
                        raise Cancelled
                    self._changed.wait(timeout=0.2)
                self._free -= 1
        finally:
            with self._changed:
                self._waiting.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def _settle(self, cancelled: threading.Event) -> None:
        """Lets those arrive who were set free by the same event."""
        if cancelled.wait(SETTLE_S):
            raise Cancelled
