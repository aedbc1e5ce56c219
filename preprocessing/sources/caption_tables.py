"""Tables of captions: captions.csv, and metadata.csv or metadata.jsonl as Hugging Face writes them.

A row is a file's name, relative to the table's own folder, and its caption. A row that is wrong
says so and is followed by the others.
"""

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from preprocessing.sources.names import printable

FILE_COLUMNS, CAPTION_COLUMNS = ("file", "file_name"), ("caption", "text")  # the first there is
LONGEST_LINE = 16 << 20  # bytes
_MOST_NAMED = 5  # columns that are not read
_FILE_OF_BAD_JSON = re.compile(r'"(?:file|file_name)"\s*:\s*"((?:[^"\\]|\\.)*)"')
_LONE_RETURN = re.compile(r"(?<=\r)(?!\n)")


class Row(NamedTuple):
    """One line of a table."""

    line: int
    file: str  # as it stands there, bytes that are not UTF-8 as surrogates; empty: it names none
    caption: str = ""
    problem: str = ""  # the end of a sentence about the line; empty when it is sound


class TableError(Exception):
    """Why a file is no table of captions: the end of a sentence about the file."""


class Table:
    """One table; what `rows` has passed by now is counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unread: list[str] = []  # some columns that are neither file nor caption

    def rows(self) -> Iterator[Row]:
        """Every row but empty ones, in order.

        Raises:
            TableError: it has no such columns, or an error that runs over several lines.
            OSError: it cannot be read.
        """
        with self.path.open("rb") as file:
            if self.path.suffix.lower() == ".jsonl":
                yield from self._rows_of_json(_lines(file))
            else:
                yield from self._rows_of_csv(_lines(file))

    def _rows_of_csv(self, lines: Iterator[str]) -> Iterator[Row]:
        columns = None
        for line, cells in _records(lines):
            if isinstance(cells, Row):
                yield cells
            elif columns is None:
                columns = self._columns(cells)
            elif cells:
                yield _row_of_cells(line, cells, columns)
        if columns is None:
            raise TableError("is empty; its first line must be file,caption")

    def _columns(self, heads: list[str]) -> "_Columns":
        places: dict[str, int] = {}
        for place, head in enumerate(heads):
            places.setdefault(head.strip().lower(), place)
        file, caption = _first_of(FILE_COLUMNS, places), _first_of(CAPTION_COLUMNS, places)
        if file is None or caption is None:
            raise TableError(
                f"has the columns {printable(','.join(heads)):.200}; its first line must name "
                "file and caption (or file_name and text), separated by commas"
            )
        self._leave(head for head in places if head not in (file, caption))
        return _Columns(places[file], places[caption], len(heads))

    def _rows_of_json(self, lines: Iterator[str]) -> Iterator[Row]:
        for line, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except (ValueError, RecursionError):
                named = _FILE_OF_BAD_JSON.search(text)
                yield Row(line, named[1] if named else "", problem="is not valid JSON; repair it")
                continue
            yield self._row_of_values(line, values)

    def _row_of_values(self, line: int, values: Any) -> Row:
        if not isinstance(values, dict):
            return Row(line, "", problem="is no JSON object; write file_name and text")
        file, caption = _first_of(FILE_COLUMNS, values), _first_of(CAPTION_COLUMNS, values)
        self._leave(key for key in values if key not in (file, caption))
        named = values.get(file) if file else None
        if not isinstance(named, str):
            return Row(line, "", problem="names no file; write file_name and text")
        said = values.get(caption) if caption else None
        if said is not None and not isinstance(said, str):
            return Row(line, named, problem="has a caption that is no text; put it in quotes")
        return _checked(Row(line, named, said or ""))

    def _leave(self, columns: Iterator[str]) -> None:
        for column in columns:
            if len(self.unread) < _MOST_NAMED and printable(column) not in self.unread:
                self.unread.append(printable(column))


class _Columns(NamedTuple):
    """Where in a row of CSV its file and its caption are, of how many cells."""

    file: int
    caption: int
    count: int


def _first_of(names: tuple[str, ...], given: dict[str, Any]) -> str | None:
    return next((name for name in names if name in given), None)


def _records(lines: Iterator[str]) -> Iterator[tuple[int, list[str] | Row]]:
    """(number of its first line, cells) of every record of CSV; of a wrong one a row that says so.

    Raises:
        TableError: a wrong one runs over several lines, so that whom it concerns is not known.
    """
    last = ""  # the line that the reader is at

    def remembered() -> Iterator[str]:
        nonlocal last
        for line in lines:
            last = line
            yield line

    records = csv.reader(remembered(), strict=True)
    while True:
        line = records.line_num + 1
        try:
            with _long_fields():
                cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            if records.line_num > line:
                raise TableError(
                    f"has an error from line {line} to line {records.line_num} ({error}); "
                    "close what is in double quotes"
                ) from None
            file = last.partition(",")[0].strip('" \r\n')
            problem = (
                f"is not valid CSV ({error}); put captions with commas in double quotes "
                '("a red car, at night")'
            )
            yield line, Row(line, file, problem=problem)
        else:
            yield line, cells


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module bounds fields for the whole process, to less than a caption may have."""
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _row_of_cells(line: int, cells: list[str], columns: _Columns) -> Row:
    if len(cells) != columns.count:
        file = cells[columns.file] if columns.file < len(cells) else ""
        return Row(
            line,
            file,
            problem=f"has {len(cells)} columns instead of {columns.count}; put captions with "
            'commas in double quotes ("a red car, at night")',
        )
    return _checked(Row(line, cells[columns.file], cells[columns.caption]))


def _checked(row: Row) -> Row:
    try:
        row.caption.encode()
    except UnicodeEncodeError:
        return row._replace(caption="", problem="is not UTF-8 text; save the table as UTF-8")
    return row


def _lines(file: IO[bytes]) -> Iterator[str]:
    """The lines with their ends; what is not UTF-8 becomes surrogates, as in names of files."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise TableError(f"has a line longer than {LONGEST_LINE >> 20} MiB (line {number})")
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise TableError("is UTF-16, not UTF-8 text; save it as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        text = line.decode("utf-8", "surrogateescape")
        yield from (part for part in _LONE_RETURN.split(text) if part)
