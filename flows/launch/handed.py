"""Files without a name that a launch hands to its processes: nobody else can open them, and they
are gone with the last process that holds them, however it ends.
"""

import os
from types import TracebackType


class HandedFile:
    """A file in memory; a context manager that lets go of it."""

    def __init__(self, what: str) -> None:
        self.number = os.memfd_create(what)

    def __enter__(self) -> "HandedFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.number)

    @property
    def path(self) -> str:
        """Its path in this process and in every one that it is handed to."""
        return f"/proc/self/fd/{self.number}"

    def text(self) -> str:
        """All that was written into it."""
        size = os.fstat(self.number).st_size
        return os.pread(self.number, size, 0).decode(errors="replace")
