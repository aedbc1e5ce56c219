"""Messages between a parent and its child processes: plain JSON and raw bytes, never pickles.

A message is a kind (one byte), a length (four bytes) and as much content. The parent trusts nothing
that a child says, and never waits for the rest of a message.
"""

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

Bytes = bytes | bytearray | memoryview
CALL, READY, PROGRESS, BEGIN, DATA, END, ERROR = b"c", b"r", b"p", b"b", b"d", b"e", b"x"
MOST_JSON_BYTES = 1 << 20  # of one message from a child; frames come as DATA

_HEADER = struct.Struct(">cI")
_MESSAGES_AT_A_TIME = 64  # of a child that never stops talking, before others have their turn


class UntrueAnswer(Exception):
    """A child's message that does not fit what it was asked for."""


def send(line: socket.socket, kind: bytes, content: Bytes = b"") -> None:
    """Sends one message; waits until the other side has room for it."""
    view = memoryview(content).cast("B")
    line.sendall(_HEADER.pack(kind, len(view)))
    line.sendall(view)


def receive(line: socket.socket) -> tuple[bytes, bytes]:
    """(kind, content) of the next message; waits for it. For children alone.

    Raises:
        EOFError: the parent has hung up.
    """
    kind, length = _HEADER.unpack(_exactly(line, _HEADER.size))
    return kind, _exactly(line, length)


def _exactly(line: socket.socket, count: int) -> bytes:
    content = bytearray(count)
    view = memoryview(content)
    while len(view):
        got = line.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return bytes(content)


def parse(content: Bytes) -> Any:
    """The JSON of a child's message.

    Raises:
        UntrueAnswer: it is not JSON of finite numbers.
    """
    try:
        return json.loads(bytes(content), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UntrueAnswer(f"no JSON: {error}") from None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


class Inbox:
    """The parent's end of a line: takes what has arrived, wherever messages are cut."""

    def __init__(self, line: socket.socket, room: Callable[[bytes, int], memoryview]) -> None:
        """
        Args:
            room: where the content of a message of this kind and length goes; raises
                `UntrueAnswer` for what must not come.
        """
        self._line, self._room = line, room
        self._begin()

    def _begin(self) -> None:
        self._kind = b""
        self._content = self._rest = memoryview(bytearray(_HEADER.size))

    def messages(self) -> Iterator[tuple[bytes, memoryview]]:
        """(kind, content) of the messages that are complete, as far as they have arrived.

        Raises:
            EOFError, OSError: the child has hung up.
            UntrueAnswer: `room` refused a message.
        """
        for _ in range(_MESSAGES_AT_A_TIME):
            while len(self._rest) or not self._kind:
                if not len(self._rest):
                    self._kind, length = _HEADER.unpack(self._content)
                    self._content = self._rest = self._room(self._kind, length)
                elif not self._read():
                    return
            kind, content = self._kind, self._content
            self._begin()
            yield kind, content

    def _read(self) -> bool:
        """Whether anything more had arrived."""
        try:
            got = os.readv(self._line.fileno(), [self._rest])
        except BlockingIOError:
            return False
        if not got:
            raise EOFError
        self._rest = self._rest[got:]
        return True
