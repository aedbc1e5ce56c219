"""Reads a journal while it is being written: whole lines only, from a remembered place on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class JournalReader:
    """Yields complete lines once each; a line being written is left for the next call."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset  # bytes read so far

    def new_lines(self) -> Iterator[Line]:
        """Lines appended since the last call; none when there is no journal yet."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                written = file.read()
        except FileNotFoundError:
            return
        complete = written[: written.rfind(b"\n") + 1]
        for text in complete.splitlines(keepends=True):
            self.offset += len(text)
            line = _parse(text)
            if line is not None:
                yield line


def first_line(path: Path) -> str:
    """The journal's first line, which tells one attempt from another; "" when there is none."""
    try:
        with path.open() as file:
            return file.readline().strip()
    except FileNotFoundError:
        return ""


def _parse(text: bytes) -> Line | None:
    """One line as a dictionary; None for a line torn by a kill, which the writer goes on behind."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
