"""Whether a video is still the one that was admitted: hours may lie between, and it is the user's.

Its state (size, times, inode) tells cheaply; its content decides where that is another or unknown.
"""

from pathlib import Path

from preprocessing.sources.digests import Digests, State, state_of

CHANGED = "its file was changed after it was admitted; the next command admits it anew"
GONE = "gone: it was listed, but is no longer there"


class Admitted:
    """Videos as they were admitted.

    Args:
        digests: what admitting them kept of their states (digests.py); None: every file that is
            asked about is read once more.
    """

    def __init__(self, digests: Path | None) -> None:
        self._digests = Digests(digests)
        self._read: dict[Path, tuple[State, str]] = {}

    def change(self, path: Path, digest: str, *, since: State | None) -> str:
        """Why what was read of a file is not of the content `digest`; "" when it is.

        Args:
            since: `state_now` of the file, from before it was read.
        """
        now = state_now(path)
        if now is None:
            return GONE
        try:
            return "" if now == since and self._digest(path, now) == digest else CHANGED
        except OSError as error:
            return f"its file can no longer be read ({error.strerror})"

    def _digest(self, path: Path, state: State) -> str:
        if path not in self._read or self._read[path][0] != state:
            self._read[path] = state, self._digests.of(path)
        return self._read[path][1]


def state_now(path: Path) -> State | None:
    """What tells a file's content from an earlier one without reading it; None: it is not there."""
    try:
        return state_of(path)
    except OSError:
        return None
