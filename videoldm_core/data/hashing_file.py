"""A file being written whose digest and length are known when it is closed."""

import hashlib
from pathlib import Path

from videoldm_core.system.files import disk_error


class HashingFile:
    """A file being written whose digest and length are known when it is closed."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.size = 0

    @property
    def closed(self) -> bool:
        """Whether all is written."""
        return self._file.closed

    def write(self, content: bytes) -> int:
        """Appends; a UserError when the disk is full or read-only."""
        self.sha256.update(content)
        self.size += len(content)
        try:
            return self._file.write(content)
        except OSError as error:
            raise disk_error(self._path, error) from error

    def tell(self) -> int:
        """How many bytes are written."""
        return self.size

    def close(self) -> None:
        """Flushes it to the disk; a UserError when that is full."""
        try:
            self._file.close()
        except OSError as error:
            raise disk_error(self._path, error) from error
