"""The base of every configuration and result record: typed, frozen, JSON both ways."""

import difflib
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from videoldm_core.errors import UserError, without_secrets
from videoldm_core.system.plain_json import read_json

R = TypeVar("R", bound="Record")
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running average, per step
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of a term in a sum
Share = Annotated[float, Field(ge=0, le=1)]  # of a whole
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # hex SHA-256
LONGEST_WORD = 100  # characters of a file's words that a message repeats
LONGEST_REASON = 300
LONGEST_NAME = 200


class _Short(reprlib.Repr):
    """Values as messages repeat them."""

    def repr_str(self, text: str, level: int) -> str:
        return super().repr_str(without_secrets(text), level)  # before it is cut, where it shows


_short = _Short()
_short.maxstring = _short.maxother = LONGEST_WORD


def path_inside(text: str) -> str:
    """`text`, a path that cannot lead out of the folder that it is relative to.

    Raises:
        ValueError: it is absolute, empty, or has a part such as "..".
    """
    parts = text.split("/")
    if "\0" in text or not all(part not in ("", ".", "..") for part in parts):
        raise ValueError("expected the path of a file inside its folder, without '..'")
    return text


# A path that somebody else wrote down: never absolute, never leading out of its folder.
InnerPath = Annotated[str, AfterValidator(path_inside)]
# The name of a folder or a model.
PlainName = Annotated[
    str, Field(max_length=LONGEST_NAME, pattern=r"^[A-Za-z0-9._-]+$"), AfterValidator(path_inside)
]


class Record(BaseModel):
    """A frozen record; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def parse_record(kind: type[R], values: Any, *, where: str) -> R:
    """Validates `values` as a record of type `kind`.

    Args:
        where: what the values are, for the message ("the run file tiny.yaml").

    Raises:
        UserError: names the first wrong key and its value, and of an unknown key its nearest match.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {problem_of(kind, error)}") from None
    except RecursionError:
        raise UserError(f"{where}: its values are nested too deeply; write it again.") from None


def load_record(kind: type[R], path: Path, *, what: str) -> R:
    """Reads a JSON file as a record of type `kind`.

    Args:
        what: what the file is, for the message ("job file").

    Raises:
        UserError: it is missing, is not JSON, or does not hold such a record.
    """
    try:
        values = read_json(path)
    except OSError as error:
        raise UserError(f"No {what} at {str(path)!r} ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(
            f"The {what} {str(path)!r} is not JSON ({error}); write it again."
        ) from None
    return parse_record(kind, values, where=repr(str(path)))


def shown(value: Any) -> str:
    """Somebody else's value as a message repeats it: its beginning, without line breaks."""
    return _short.repr(value)


def nearest(word: str, known: list[str]) -> str:
    """A hint to append to an error: the nearest known word, or all of them."""
    match = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(known))}."


def problem_of(kind: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong with values for a record of type `kind`, with a full stop."""
    # A misspelt key is two errors, an unknown and a missing one; the unknown one says more.
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    path = [_printable(str(part)) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = sorted(_fields_at(kind, path[:-1]))
        return f"unknown key {'.'.join(path)!r}; {nearest(path[-1], known)}"
    if first["type"] == "missing":
        return f"key {'.'.join(path)!r} is missing; add it."
    reason = _printable(first["msg"], LONGEST_REASON)
    return f"{'.'.join(path) or 'value'} = {_short.repr(first['input'])}: {reason}."


def _printable(word: str, longest: int = LONGEST_WORD) -> str:
    """Words of somebody else's, cut to what a message repeats, without what a terminal obeys."""
    short = word[:longest]
    return short if short.isprintable() else ascii(short)


def _fields_at(kind: Any, path: list[str]) -> list[str]:
    """Field names of the record found by following `path`; empty when it leads outside records."""
    for name in path:
        if name.isdecimal():  # a place in a tuple of records
            kind = next(iter(get_args(kind)), None)
            continue
        field = getattr(kind, "model_fields", {}).get(name)
        kind = field.annotation if field else None
    return [field.alias or name for name, field in getattr(kind, "model_fields", {}).items()]
