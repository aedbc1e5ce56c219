"""Everything that lies in the user's folder of videos, and what of it is not looked into, and why.

Opens no file. Linked folders are followed, each folder once; hidden ones and those that cannot be
listed are passed over and named.
"""

import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from preprocessing.sources.names import printable, written_name
from videoldm_core.errors import UserError
from videoldm_core.records import Record
from videoldm_core.system.files import unreadable

_OTHER_KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LONGEST_SUFFIX = 12  # characters; what is longer is a name with a dot in it
_MOST_SUFFIXES = 100


class Refusal(NamedTuple):
    """Why one file is not used."""

    category: str  # in a word or two
    detail: str


class FoundFile(NamedTuple):
    """A name in the folder that is no folder, or that cannot be looked at."""

    name: str  # path below the folder, with forward slashes, as names.py writes it
    path: Path
    size: int = 0  # bytes
    changed_ns: int = 0  # time of the last change of its content
    refusal: Refusal | None = None  # why it cannot be read; None: it is a file


class PassedOver(Record):
    """Something in the folder that nobody looked into."""

    name: str
    reason: str
    is_hidden: bool = False  # its name says that it is not meant to be seen


class Listing(NamedTuple):
    """The folder as it was."""

    files: list[FoundFile]  # in name order
    folders: list[FoundFile]  # named like a file perhaps; each with the refusal to read it as one
    passed_over: list[PassedOver]
    hidden: int  # files whose names begin with a dot


def list_folder(folder: Path) -> Listing:
    """Lists a folder and all below it. Whatever is odd costs itself alone.

    Raises:
        UserError: the folder itself is missing, is a file, or cannot be listed.
    """
    _check_is_folder(folder)
    walk = _Walk(folder)
    walk.run()
    return Listing(
        files=sorted(walk.files),
        folders=sorted(walk.folders),
        passed_over=sorted(walk.passed_over, key=lambda item: item.name),
        hidden=walk.hidden,
    )


def counted_by_suffix(names: Iterable[str], *, hidden: int = 0) -> dict[str, int]:
    """How many there are of every kind of file, most first; of kinds, not of single names."""
    counts: Counter[str] = Counter()
    for name in names:
        suffix = Path(name).suffix.lower()
        is_kind = suffix[1:].isalnum() and len(suffix) <= _LONGEST_SUFFIX
        counts[suffix if is_kind else "other" if suffix else "without a suffix"] += 1
    if hidden:
        counts["hidden"] = hidden
    shown = counts.most_common(_MOST_SUFFIXES)
    rest = counts.total() - sum(count for _, count in shown)
    return dict(shown) | ({"further kinds": rest} if rest else {})


def _check_is_folder(folder: Path) -> None:
    if not folder.exists():
        raise UserError(
            f"The video folder {str(folder)!r} does not exist; give the path of a folder of videos."
        )
    if not folder.is_dir():
        raise UserError(
            f"{str(folder)!r} is a file, not a folder; give the folder that holds the video files."
        )


class _Walk:
    """One walk: real folders first, so that what is found both ways has its real name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[FoundFile] = []
        self.folders: list[FoundFile] = []
        self.passed_over: list[PassedOver] = []
        self.hidden = 0
        self._linked: deque[Path] = deque()
        # Device and inode -> the name under which it is walked.
        self._walked: dict[tuple[int, int], str] = {}

    def run(self) -> None:
        for parent in self.folder.resolve().parents:
            self._walked[_identity(parent.stat())] = ""
        try:
            os.scandir(self.folder).close()
        except OSError as error:
            raise unreadable(self.folder, error) from None
        waiting = [self.folder]
        while waiting:
            waiting += self._walk(waiting.pop())
            if not waiting and self._linked:
                waiting.append(self._linked.popleft())

    def _walk(self, folder: Path) -> list[Path]:
        """Looks at the names in one folder; returns the folders below it."""
        name = self._name(folder)
        try:
            seen = self._walked.setdefault(_identity(folder.stat()), name)
            if seen != name:
                self._pass_over(folder, _why_not_again(seen))
                return []
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self._pass_over(folder, f"a folder that cannot be listed ({_said(error)})")
            return []
        return [below for entry in entries if (below := self._look_at(entry))]

    def _look_at(self, entry: os.DirEntry[str]) -> Path | None:
        """Notes one name; returns it where it is a folder to walk now."""
        path = Path(entry.path)
        if entry.name.startswith("."):
            if entry.is_dir(follow_symlinks=False):
                self._pass_over(path, "a hidden folder", is_hidden=True)
            else:
                self.hidden += 1
            return None
        try:
            found = entry.stat()
        except OSError as error:
            refusal = _why_not_there(error, is_link=entry.is_symlink())
            self.files.append(FoundFile(self._name(path), path, refusal=refusal))
            return None
        if not stat.S_ISDIR(found.st_mode):
            self.files.append(self._file(path, found))
            return None
        refusal = Refusal("not a file", "it is a folder")
        self.folders.append(FoundFile(self._name(path), path, refusal=refusal))
        if entry.is_symlink():
            self._linked.append(path)
            return None
        return path

    def _file(self, path: Path, found: os.stat_result) -> FoundFile:
        kind = _OTHER_KINDS.get(stat.S_IFMT(found.st_mode))
        return FoundFile(
            self._name(path),
            path,
            size=found.st_size,
            changed_ns=found.st_mtime_ns,
            refusal=Refusal("not a file", f"it is {kind}") if kind else None,
        )

    def _pass_over(self, path: Path, reason: str, *, is_hidden: bool = False) -> None:
        self.passed_over.append(
            PassedOver(name=self._name(path), reason=reason, is_hidden=is_hidden)
        )

    def _name(self, path: Path) -> str:
        return written_name(path.relative_to(self.folder))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _why_not_again(seen: str) -> str:
    if seen in ("", "."):
        return "a link to the folder of videos itself, or to one that holds it"
    return f"a link to a folder that is looked into as {seen!r}"


def _why_not_there(error: OSError, *, is_link: bool) -> Refusal:
    if error.errno == errno.ELOOP:
        return Refusal("unreadable", "it is a link that leads back to itself")
    if error.errno == errno.ENOENT and is_link:
        return Refusal("unreadable", "it is a link to nothing")
    return refusal_of(error)


def refusal_of(error: OSError) -> Refusal:
    """Why a listed file is not used, from what the system says of it."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        return Refusal("gone", "it was listed, but is no longer there")
    return Refusal("unreadable", _said(error))


def _said(error: OSError) -> str:
    return printable(error.strerror or str(error))
