"""The captions of a folder of videos, from every form in which the field keeps them.

The first of these that says anything counts: NAME.txt, NAME.mp4.txt, NAME.caption,
NAME.mp4.caption, captions.csv, metadata.csv, metadata.jsonl; of tables of one name the nearest.
A caption that cannot be read costs its video; one that is too long is cut, and that is noted.
"""

import codecs
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from preprocessing.sources.beside import Beside, normalised
from preprocessing.sources.caption_tables import Row, Table, TableError
from preprocessing.sources.listing import FoundFile, Refusal, refusal_of
from preprocessing.sources.names import printable
from videoldm_core.errors import UserError

MAX_BYTES = 16 << 10  # of a caption, as UTF-8
TEXT_SUFFIXES = (".txt", ".caption")
OUR_TABLE = "captions.csv"
TABLES = (OUR_TABLE, "metadata.csv", "metadata.jsonl")
FORMS = "NAME.txt, NAME.mp4.txt, NAME.caption, captions.csv, metadata.csv and metadata.jsonl"
_READ_BYTES = 64 * MAX_BYTES  # of a file of text


class Caption(NamedTuple):
    """A video's caption."""

    text: str = ""  # on one line
    notes: tuple[str, ...] = ()
    refusal: Refusal | None = None  # why it is not known


class _Said(NamedTuple):
    """A caption that one place gives to a video."""

    where: str
    text: str = ""
    problem: str = ""  # the end of a sentence about the place
    is_cut: bool = False


class Captions:
    """The captions of some videos.

    Args:
        others: what else lies in the folder.

    Raises:
        UserError: captions.csv at the top of the folder cannot be used.
    """

    read: set[str]  # names of the files that captions come from
    remarks: list[str]  # what was not understood, a sentence each without its full stop

    def __init__(
        self, folder: Path, videos: Sequence[FoundFile], others: Sequence[FoundFile], beside: Beside
    ) -> None:
        self._folder, self._beside = folder, beside
        self._names = _Names(folder, videos)
        self._said: dict[str, list[_Said]] = {}  # by tables, of a video, in their order
        self.read, self.remarks = set(), []
        tables = [file for file in others if file.path.name.lower() in TABLES]
        for file in sorted(tables, key=_precedence):
            self._read_table(file)

    def of(self, video: FoundFile) -> Caption:
        """The caption of one of the videos."""
        said: list[_Said] = []
        notes: list[str] = []
        for suffix in TEXT_SUFFIXES:
            files, doubtful = self._beside.of(video, suffix)
            self.read.update(file.name for file in files)
            said += map(_read_text, files)
            notes += (f"{file.name!r} may be another video's and is not read" for file in doubtful)
        said += self._said.get(video.name, ())
        return _chosen([one for one in said if one.text or one.problem], notes)

    def _read_table(self, file: FoundFile) -> None:
        self.read.add(file.name)
        rows = _TableOfVideos(file, self._names, posixpath.dirname(file.name))
        try:
            rows.read()
        except TableError as error:
            if file.name == OUR_TABLE:
                raise UserError(f"{str(file.path)!r} {error}.") from None
            self.remarks.append(f"{file.name!r} {error}")
        if file.name == OUR_TABLE and rows.strays and not rows.said:
            raise UserError(
                f"No line of {str(file.path)!r} names a video of the folder (the first is "
                f"{rows.strays[0]!r}); write paths relative to the folder."
            )
        self.remarks += rows.remarks()
        for name, said in rows.said.items():
            self._said.setdefault(name, []).append(said)


class _TableOfVideos:
    """One table, by the videos that it names."""

    def __init__(self, file: FoundFile, names: "_Names", folder: str) -> None:
        self._file, self._names, self._folder = file, names, folder
        self._table = Table(file.path)
        self._odd: list[str] = []
        self.said: dict[str, _Said] = {}
        self.strays: list[str] = []  # files that it names and that are no videos of the folder

    def read(self) -> None:
        """Raises TableError where it is no table of captions, or whom an error concerns is not
        known."""
        if self._file.refusal:
            raise TableError(f"cannot be read: {self._file.refusal.detail}")
        try:
            for row in self._table.rows():
                self._take(row)
        except OSError as error:
            raise TableError(f"cannot be read: {refusal_of(error).detail}") from None

    def remarks(self) -> list[str]:
        """What of it was not understood."""
        name = repr(self._file.name)
        remarks = [f"{name} {odd}" for odd in self._odd]
        if self.strays:
            remarks.append(
                f"{name} names {len(self.strays)} files that are no videos of the folder, such as "
                f"{self.strays[0]!r}"
            )
        if self._table.unread:
            remarks.append(f"{name}: nothing is read from {', '.join(self._table.unread)}")
        return remarks

    def _take(self, row: Row) -> None:
        found = self._names.find(row.file, self._folder)
        if len(found) > 1:
            self._odd.append(
                f"line {row.line} names {printable(row.file)!r}, and {len(found)} videos are named "
                "like that but for the way that accents are written; neither gets it"
            )
        elif found:
            self._give(found[0], row)
        elif row.problem:
            self._odd.append(f"line {row.line} {row.problem}")
        else:
            self.strays.append(printable(row.file))

    def _give(self, video: str, row: Row) -> None:
        where = f"{self._file.name!r} line {row.line}"
        text, is_cut = _on_one_line(row.caption)
        said = _Said(where, text, row.problem, is_cut)
        if self.said.get(video, said)[1:] != said[1:]:
            said = _Said(where, problem="gives it a second caption; keep one line per file")
        self.said[video] = said


class _Names:
    """The videos of a folder, by the ways in which a table may name them."""

    def __init__(self, folder: Path, videos: Sequence[FoundFile]) -> None:
        raw = {video.path.relative_to(folder).as_posix(): video.name for video in videos}
        self._exact = {name: name for name in raw.values()} | raw
        self._alike: dict[str, list[str]] = {}
        for path, name in raw.items():
            self._alike.setdefault(normalised(path), []).append(name)

    def find(self, file: str, folder: str) -> Sequence[str]:
        """Names of the videos that a cell may mean, as they are written: none, one or several.

        Args:
            file: relative to the table's folder.
            folder: of the table, below the folder of videos, as names.py writes it.
        """
        for name in (file, file.strip()):
            path = posixpath.normpath(posixpath.join(folder, name))
            if path in self._exact:
                return [self._exact[path]]
        return self._alike.get(normalised(path), ())


def _precedence(file: FoundFile) -> tuple[int, int, str]:
    """captions.csv first; of one kind the deepest first."""
    return TABLES.index(file.path.name.lower()), -file.name.count("/"), file.name


def _read_text(file: FoundFile) -> _Said:
    where = repr(file.name)
    if file.refusal:
        return _Said(where, problem=f"cannot be read: {file.refusal.detail}")
    try:
        with file.path.open("rb") as opened:
            content = opened.read(_READ_BYTES + 1)
    except OSError as error:
        return _Said(where, problem=f"cannot be read: {refusal_of(error).detail}")
    is_cut = len(content) > _READ_BYTES
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        text = decoder.decode(content, final=not is_cut)
    except UnicodeDecodeError as error:
        said = f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
        return _Said(where, problem=said)
    text, is_cut_too = _on_one_line(text)
    return _Said(where, text, is_cut=is_cut or is_cut_too)


def _on_one_line(text: str) -> tuple[str, bool]:
    """The text without line breaks, and whether it had to be cut."""
    is_long = len(text) > _READ_BYTES  # a list of all its words would be many times larger
    text = " ".join(text[:_READ_BYTES].split())
    raw = text.encode()
    if len(raw) <= MAX_BYTES:
        return text, is_long
    return raw[:MAX_BYTES].decode("utf-8", "ignore").rstrip(), True


def _chosen(said: list[_Said], notes: list[str]) -> Caption:
    """The first caption; what others say, where it is something else, is noted."""
    if not said:
        return Caption(notes=tuple(notes))
    first, *rest = said
    if first.problem:
        return Caption(refusal=Refusal("bad caption", f"{first.where} {first.problem}"))
    if first.is_cut:
        notes.append(f"its caption ({first.where}) is longer than {MAX_BYTES >> 10} KiB and is cut")
    others = [other.where for other in rest if other.text != first.text]
    if others:
        notes.append(f"its captions differ: {first.where} is used, not {', '.join(others)}")
    return Caption(first.text, tuple(notes))
