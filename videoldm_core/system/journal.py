"""The journal of a stage: a JSON line per report, in a file, before any is sent anywhere."""

import json
import time
from pathlib import Path
from typing import Any

from videoldm_core.system.files import disk_error, make_folder, sync


class Journal:
    """Appends lines; each is with the operating system when `write` returns: a kill loses none.

    A loss of power may take those since the last `sync`: waiting for the disk at every line would
    cost 3 ms and more a step. A crashed run's half line is closed first, so that readers can skip
    it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            make_folder(path.parent)
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

    def sync(self) -> None:
        """Waits until every line is on the disk: before anything is published that goes beyond it.

        Raises:
            UserError: the disk could not write them.
        """
        try:
            sync(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise disk_error(self.path, error) from error

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise disk_error(self.path, error) from error
