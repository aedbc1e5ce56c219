"""The journal of a stage: a JSON line per report, on local disk, before any is sent anywhere."""

import json
import time
from pathlib import Path
from typing import Any

from videoldm_core.files import disk_error


class Journal:
    """Appends lines; each is whole on disk before `write` returns.

    A crashed run's half line is closed first, so that readers can skip it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(path, error) from error
        if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._append("\n")

    def write(self, **entry: Any) -> None:
        """Adds one entry with the time.

        Raises:
            UserError: the disk is full or read-only.
        """
        self._append(json.dumps({"time": round(time.time(), 3), **entry}) + "\n")

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise disk_error(self.path, error) from error
