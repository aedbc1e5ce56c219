"""Temporary folders that do not outlive their process for long, however it ends.

Each is locked by its process as long as that lives. A killed process removes nothing; the next one
that makes such a folder removes what it left.
"""

import fcntl
import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from weakref import finalize

from videoldm_core.errors import UserError
from videoldm_core.system.files import disk_error

LOCK = "in-use.lock"
_IN_USE: dict[Path, int] = {}  # folders of this process, and the locks that say so


class ScratchFolder:
    """A new folder, this user's alone; removed with this object or at the end of the process.

    Args:
        kind: what for, as in "releases"; those that killed processes left of it are removed.

    Raises:
        UserError: the folder for temporary files cannot be used.
    """

    def __init__(self, kind: str) -> None:
        root = _root(kind)
        try:
            with _locked(root / LOCK):
                _remove_left(root)
                self.path = Path(tempfile.mkdtemp(dir=root))
                lock = _lock(self.path / LOCK, wait=False)
        except OSError as error:
            raise disk_error(root, error) from error
        assert lock is not None, "nobody else looks for folders meanwhile"
        _IN_USE[self.path] = lock
        _let_sigterm_end_as_an_exit()
        finalize(self, _end, self.path)


def _let_sigterm_end_as_an_exit() -> None:
    """Lets SIGTERM, where it would end the process at once, remove its folders first.

    A server that handles it calls this last: it hands on to whoever would have had the signal.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit_and_end)


def _exit_and_end(number: int, frame: FrameType | None) -> None:
    for folder in list(_IN_USE):
        _end(folder)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _root(kind: str) -> Path:
    """The folder that holds all scratch folders of a kind, this user's alone."""
    root = Path(tempfile.gettempdir()) / f"videoldm-{kind}-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise disk_error(root, error) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"{str(root)!r} is no folder that this user alone can write to; remove it, or set "
            "TMPDIR to a folder of your own."
        )
    return root


def _remove_left(root: Path) -> None:
    """Removes the folders whose process is gone."""
    for folder in root.iterdir():
        if folder.name == LOCK:
            continue
        try:
            lock = _lock(folder / LOCK, wait=False)
        except FileNotFoundError:  # its process has just removed it
            continue
        if lock is not None:
            _IN_USE[folder] = lock
            _end(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = _lock(path, wait=True)
    assert lock is not None, "it was waited for"
    try:
        yield
    finally:
        os.close(lock)


def _lock(path: Path, *, wait: bool) -> int | None:
    """The descriptor of a locked file; None: another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _end(folder: Path) -> None:
    # What cannot be removed now is tried again by the next process; there is nobody to tell.
    shutil.rmtree(folder, ignore_errors=True)
    lock = _IN_USE.pop(folder, None)
    if lock is not None:
        os.close(lock)
