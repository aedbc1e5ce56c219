"""One holder at a time for what several processes may want, on whatever file system it lies.

The kernel's lock where there is one: it ends with its process. Lustre and some NFS mounts have none
(flock answers ENOLCK, ENOSYS or EOPNOTSUPP): there a file that only one process can make names the
holder, and is taken over when that process has ended.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from videoldm_core.records import Record

NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
POLL_S = 0.2
REMOVING_S = 30.0  # long enough for a busy machine


class Holder(Record):
    """A process, told apart from all others that have been or will be on this machine."""

    host: str
    boot: str  # of the kernel it runs under, and of the process numbers it has there
    process: int
    started: int  # clock ticks since that boot
    since: float  # unix time

    @classmethod
    def this_process(cls) -> "Holder":
        """The process that asks."""
        number = os.getpid()
        started = _start_of(number)
        assert started is not None, "this process runs"
        return cls(
            host=socket.gethostname(),
            boot=_boot(),
            process=number,
            started=started,
            since=round(time.time(), 3),
        )

    def has_ended(self) -> bool:
        """Whether the process is certainly gone; of another machine, or another boot, nobody here
        can know.
        """
        return self.boot == _boot() and _start_of(self.process) != self.started

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).astimezone().isoformat(" ", "seconds")
        return f"process {self.process} on host {self.host!r}, since {since}"


class Held(Exception):
    """Somebody else holds it."""

    def __init__(self, holder: Holder | None, file: Path | None) -> None:
        self.holder = holder  # None: nobody can tell
        self.file = file  # that must go when the holder is gone; None: the kernel sees to it
        super().__init__(f"held by {holder or 'another process'}")

    @property
    def hint(self) -> str:
        """Who holds it, and what to do when that is no more; "" where it is never needed."""
        if self.file is None:
            return ""
        holder = f"it is {self.holder}" if self.holder else "it did not write who it is"
        return f"{holder}; if it runs no more, delete {str(self.file)!r}"


@contextlib.contextmanager
def lock(path: Path, *, waits: bool = False) -> Iterator[Path | None]:
    """Holds `path`, a file that is made for it, while the block runs.

    Yields:
        The file that names this process to others; None where the kernel's lock does.

    Args:
        waits: until it is free; otherwise a lock that is held is refused.

    Raises:
        Held: somebody else holds it, and `waits` is false.
        OSError: the folder cannot be written to.
    """
    with path.open("a") as file:
        if _flocked(file.fileno(), waits=waits):
            yield None
            return
    named = path.with_name(f"{path.name}.held")
    _make_file(named, waits=waits)
    try:
        yield named
    finally:
        named.unlink(missing_ok=True)


def _flocked(file: int, *, waits: bool) -> bool:
    """Whether the kernel's lock is held now; False on a file system without any."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        raise Held(None, None) from None
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return False
    return True


def _make_file(named: Path, *, waits: bool) -> None:
    while True:
        try:
            _create(named)
            return
        except FileExistsError:
            holder = _holder(named)
        if holder is not None and holder.has_ended():
            _remove_left(named, holder)
        elif waits:
            time.sleep(POLL_S)
        elif named.exists():
            raise Held(holder, named)


def _create(named: Path) -> None:
    """Only one process can: making a file that must not exist is one operation of the server."""
    with open(os.open(named, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
        file.write(Holder.this_process().model_dump_json())


def _remove_left(named: Path, holder: Holder) -> None:
    """Removes what an ended process left; of several that want to, one does."""
    mutex = named.with_name(f"{named.name}.removing")
    try:
        _create(mutex)
    except FileExistsError:
        _wait_for_remover(mutex)
        return
    try:
        if _holder(named) == holder:
            named.unlink()
    finally:
        mutex.unlink()


def _wait_for_remover(mutex: Path) -> None:
    """Waits while another process removes what was left, which takes no time.

    Raises:
        Held: that one was killed in the middle.
    """
    deadline = time.monotonic() + REMOVING_S
    while mutex.exists():
        remover = _holder(mutex)
        if (remover and remover.has_ended()) or time.monotonic() > deadline:
            raise Held(remover, mutex)
        time.sleep(POLL_S)


def _holder(named: Path) -> Holder | None:
    """Who made the file; None when it is gone, or nothing stands in it (yet)."""
    try:
        return Holder.model_validate_json(named.read_text())
    except (FileNotFoundError, ValidationError):
        return None


def _boot() -> str:
    """Identity of this machine's boot, and of the name space that process numbers are from."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _start_of(process: int) -> int | None:
    """When a process started, in clock ticks since the boot; None when there is none."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = text.rpartition(")")[2].split()  # its name may hold anything
    return None if state in "ZX" else int(rest[18])
