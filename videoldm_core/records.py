"""The base of every configuration and result record: typed, frozen, JSON both ways."""

import difflib
import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from videoldm_core.errors import UserError

R = TypeVar("R", bound="Record")
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running average, per step
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of a term in a sum
Share = Annotated[float, Field(ge=0, le=1)]  # of a whole
LONGEST_WORD = 100  # characters of a file's words that a message repeats
_short = reprlib.Repr()
_short.maxstring = _short.maxother = LONGEST_WORD


class Record(BaseModel):
    """A frozen record; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
        raise UserError(f"{where}: {_sentence(kind, error)}") from None


def load_record(kind: type[R], path: Path, *, what: str) -> R:
    """Reads a JSON file as a record of type `kind`.

    Args:
        what: what the file is, for the message ("job file").

    Raises:
        UserError: it is missing, is not JSON, or does not hold such a record.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"No {what} at {str(path)!r} ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(
            f"The {what} {str(path)!r} is not JSON ({error}); write it again."
        ) from None
    return parse_record(kind, values, where=repr(str(path)))


def nearest(word: str, known: list[str]) -> str:
    """A hint to append to an error: the nearest known word, or all of them."""
    match = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(known))}."


def _sentence(kind: type[BaseModel], error: ValidationError) -> str:
    # A misspelt key is two errors, an unknown and a missing one; the unknown one says more.
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    path = [str(part)[:LONGEST_WORD] for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = sorted(_fields_at(kind, path[:-1]))
        return f"unknown key {'.'.join(path)!r}; {nearest(path[-1], known)}"
    if first["type"] == "missing":
        return f"key {'.'.join(path)!r} is missing; add it."
    return f"{'.'.join(path) or 'value'} = {_short.repr(first['input'])}: {first['msg']}."


def _fields_at(kind: Any, path: list[str]) -> list[str]:
    """Field names of the record found by following `path`; empty when it leads outside records."""
    for name in path:
        if name.isdecimal():  # a place in a tuple of records
            kind = next(iter(get_args(kind)), None)
            continue
        field = getattr(kind, "model_fields", {}).get(name)
        kind = field.annotation if field else None
    return [field.alias or name for name, field in getattr(kind, "model_fields", {}).items()]
