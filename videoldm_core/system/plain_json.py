"""JSON that others may have written, bounded in size, depth and numbers."""

import json
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20  # of a file that describes a model, a job or a shard
MOST_NESTED = 100  # lists and objects inside one another
MOST_DIGITS = 20  # of a whole number: 64 bits
_TOO_DEEP = f"it is nested more than {MOST_NESTED} levels deep"


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: it is not JSON, is nested deeper than MOST_NESTED, or holds a whole number
            longer than 64 bits. Infinity and NaN are for records to refuse: diffusers writes some.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value)
    return value


def read_json(path: Path, *, most_bytes: int = MOST_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: see `parse_json`, or it has more than `most_bytes`.
    """
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it has more than {most_bytes >> 20} MiB")
    return parse_json(content)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_NESTED + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _inside(value: Any) -> list[Any]:
    """The lists and objects directly inside a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for one in inner if isinstance(one, dict | list)]


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)
