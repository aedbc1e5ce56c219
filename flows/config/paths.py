"""Paths as users write them."""

from pathlib import Path
from typing import Any


def user_path(value: Any) -> Any:
    """A path of a run file or of the command line, `~` expanded; anything else as it is.

    Raises:
        ValueError: an empty path, which would mean the present folder, or one that cannot be.
    """
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("an empty path; expected a file or folder, or leave the key out")
    if "://" in value:
        raise ValueError("an address; expected a file or folder of this machine")
    if "\0" in value:
        raise ValueError("a path with a zero byte; expected one without")
    try:
        return str(Path(value).expanduser())
    except RuntimeError:
        raise ValueError("no such user; expected ~ or a path without it") from None
