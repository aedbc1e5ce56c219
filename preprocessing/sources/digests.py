"""Digests of files that did not change since they were last read, kept in one small file.

A folder of a million videos is read once, not in every run. Whatever is doubtful is read again.
"""

import hashlib
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from preprocessing.sources.names import written_name
from videoldm_core.records import Record
from videoldm_core.system.files import sha256_of_file, write_text_atomically

SAVE_EVERY_S = 60.0  # what a killed run has read so far is not read again
SAVE_SHARE = 0.02  # of the time, at most: of a million files, saving takes a while
# Until a file is this old it may change once more within one tick of its file system's clock.
SETTLED_NS = 2_000_000_000

_OF_NOTHING = hashlib.sha256(b"").hexdigest()  # what the kernel shows as empty may never end

_log = logging.getLogger(__name__)

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
State = tuple[int, int, int, int]  # size in bytes, mtime and ctime in ns, inode
Known = tuple[int, int, int, int, Digest]  # the state, and the SHA-256


class _File(Record):
    """What the file of digests holds."""

    format: Literal[2] = 2
    files: dict[str, Known] = {}


class Digests:
    """Digests by path, size, times and inode; use as a context manager, which keeps them.

    Files that were not asked about are forgotten.

    Args:
        path: where they are kept between runs; None: nowhere. What cannot be read there counts as
            nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known = _read(path) if path else {}
        self._asked: dict[str, Known] = {}
        self._saved_at, self._save_every_s = time.monotonic(), SAVE_EVERY_S

    def of(self, path: Path) -> str:
        """Hex SHA-256 of a file, read only if it is not known.

        Raises:
            OSError: it cannot be read.
            UserError: the digests cannot be written.
        """
        name = written_name(path.absolute())
        state = state_of(path)
        known = self._known.get(name)
        if known is not None and known[:-1] == state:
            self._asked[name] = known
            return known[-1]
        # As it was before it was read: what changes meanwhile has another time afterwards.
        size, modified_ns, *_ = state
        is_settled = time.time_ns() - modified_ns > SETTLED_NS
        digest = sha256_of_file(path) if size else _OF_NOTHING
        if is_settled:
            self._asked[name] = (*state, digest)
        if time.monotonic() - self._saved_at > self._save_every_s:
            self._save(self._known | self._asked)
        return digest

    def _save(self, files: dict[str, Known]) -> None:
        began = time.monotonic()
        if self._path and files != self._known:
            write_text_atomically(self._path, _File(files=files).model_dump_json() + "\n")
        self._known, self._saved_at = files, time.monotonic()
        self._save_every_s = max(SAVE_EVERY_S, (self._saved_at - began) / SAVE_SHARE)

    def __enter__(self) -> "Digests":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        # Interrupted: of the files that were not asked about yet, what was known stays known.
        self._save(self._asked if error is None else self._known | self._asked)


def state_of(path: Path) -> State:
    """What tells a file's content from another without reading it.

    Raises:
        OSError: it is not there.
    """
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _read(path: Path) -> dict[str, Known]:
    try:
        return _File.model_validate_json(path.read_bytes()).files
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError):
        _log.info("%r cannot be read; every file is read again", str(path))
        return {}
