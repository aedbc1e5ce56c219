"""What a child process answers, checked as it comes in: nothing larger, other or more than asked.

A child that has read a hostile file may say anything; a lie costs its call and its process.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from preprocessing.isolation import messages
from preprocessing.isolation.child import Limits
from preprocessing.isolation.messages import UntrueAnswer
from videoldm_core.errors import UserError

LONGEST_SENTENCE = 500  # characters of a child's words

Cause = Literal["raised", "idle", "total", "waiting", "memory", "lost", "untrue"]


class IsolatedError(UserError):
    """A call without a value: what happened, and of which kind that is.

    `cause` is "raised" for an unforeseen error of the function itself; "idle" and "total" for the
    limits of processor time, which the same call would meet again; "waiting" for the clock's.
    """

    def __init__(self, sentence: str, cause: Cause) -> None:
        super().__init__(sentence)
        self.cause: Cause = cause


def facts_alone(facts: Any, content: np.ndarray) -> Any:
    """Reads an answer without bytes."""
    if len(content):
        raise ValueError("bytes that nobody asked for")
    return facts


class Call(NamedTuple):
    """One call of the function that a pool runs."""

    args: tuple[Any, ...]  # as JSON knows them
    limits: Limits
    most_bytes: int = 0  # that the answer may hold besides its facts
    # (facts, their bytes as uint8) -> the value; raises ValueError, TypeError or LookupError for
    # what cannot be true.
    read: Callable[[Any, np.ndarray], Any] = facts_alone


class Outcome(NamedTuple):
    """What became of the call number `index`: a value, or the error it ended with."""

    index: int
    value: Any = None
    error: UserError | None = None  # IsolatedError, or one of the pool's errors


class IncomingAnswer:
    """The answer to one call, as far as it has come."""

    def __init__(self, call: Call, errors: Sequence[type[UserError]]) -> None:
        self._call = call
        self._errors = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in errors}
        self._facts: Any = None
        self._content: np.ndarray | None = None  # once it has begun
        self._filled = 0

    def room(self, kind: bytes, length: int) -> memoryview:
        """Where the content of the next message goes.

        Raises:
            UntrueAnswer: the message is none of this answer.
        """
        if kind != messages.DATA:
            if length > messages.MOST_JSON_BYTES:
                raise UntrueAnswer(f"a message of {length} bytes")
            return memoryview(bytearray(length))
        if self._content is None or length > len(self._content) - self._filled:
            raise UntrueAnswer("more bytes than it announced")
        start, self._filled = self._filled, self._filled + length
        return self._content.data[start : self._filled]

    def take(self, kind: bytes, content: memoryview) -> tuple[Any, UserError | None] | None:
        """(value, error) when this message ends the answer.

        Raises:
            UntrueAnswer: it does not fit what was asked for.
        """
        if kind in (messages.DATA, messages.PROGRESS):
            return None
        if kind == messages.BEGIN and self._content is None:
            self._begin(messages.parse(content))
            return None
        if kind == messages.END and self._content is not None:
            return self._value(self._content), None
        if kind == messages.ERROR:
            return None, self._error(messages.parse(content))
        raise UntrueAnswer(f"a message of kind {kind!r}")

    def _begin(self, said: Any) -> None:
        if not isinstance(said, dict) or set(said) != {"facts", "size"}:
            raise UntrueAnswer("another beginning")
        size = said["size"]
        if type(size) is not int or not 0 <= size <= self._call.most_bytes:
            raise UntrueAnswer(f"{size!r} bytes instead of at most {self._call.most_bytes}")
        self._facts, self._content = said["facts"], np.empty(size, np.uint8)

    def _value(self, content: np.ndarray) -> Any:
        if self._filled != len(content):
            raise UntrueAnswer(f"{self._filled} of {len(content)} bytes")
        try:
            return self._call.read(self._facts, content)
        except (ValueError, TypeError, LookupError) as error:
            raise UntrueAnswer(f"{type(error).__name__}: {error}") from None

    def _error(self, said: Any) -> UserError:
        if not isinstance(said, dict) or not isinstance(words := said.get("words"), list):
            raise UntrueAnswer("another error")
        if said.get("type") == "MemoryError":
            return IsolatedError("", "memory")
        sentences = [one_line(str(word)) for word in words]
        kind = self._errors.get(str(said.get("type")))
        if kind is None:
            return IsolatedError("; ".join(sentences), "raised")
        try:
            return kind(*sentences)
        except TypeError:
            raise UntrueAnswer("an error of other words") from None


def one_line(text: str) -> str:
    """A stranger's words as one printable line of bounded length."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= LONGEST_SENTENCE else f"{line[:LONGEST_SENTENCE]} ..."
