"""The child's side of isolation.py: answers calls over a socket until the parent hangs up.

Imports only what the called functions need.
"""

import importlib
import json
import math
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from preprocessing.isolation import messages
from preprocessing.isolation.confinement import confine
from videoldm_core.errors import UserError

_GRACE_S = 6.0  # that the parent has to end this child itself
_REPORT_S = 1.0  # between two reports of progress
_LONGEST_WORD = 1000  # characters of what an error says


class Limits(NamedTuple):
    """Bounds of one call. Processor time decides, not the clock: a busy machine changes nothing."""

    idle_cpu_s: float  # of processor time without progress
    idle_wall_s: float  # by the clock without progress: a disk or network that no longer answers
    total_cpu_s: float  # of processor time, however much progress there is


class Answer(NamedTuple):
    """A large answer: facts as JSON, and bytes in pieces that are sent as they are made."""

    facts: Any
    size: int  # bytes of all pieces
    pieces: Iterable[messages.Bytes]


Progress = Callable[[float], None]
"""Called with the processor time, s, that the step of work just done may have taken."""


def no_progress(_: float) -> None:
    """For calls outside a child, which have no limits."""


def nothing(_: Progress) -> None:
    """A call that shows that children start."""


class Meter:
    """The limits of one call, kept by the kernel: it ends this process even in the middle of C.

    Idle processor time is a bucket: progress fills it again, up to the brim.
    """

    def __init__(self, limits: Limits, line: socket.socket) -> None:
        self._limits, self._line, self._reported = limits, line, time.monotonic()
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        total = math.ceil(time.process_time() + limits.total_cpu_s)
        soft = total if hard == resource.RLIM_INFINITY else min(total, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, limits.idle_cpu_s)
        self._set_alarm(True)

    def __call__(self, earned_s: float) -> None:
        """Notes progress that was worth so much processor time."""
        left_s, _ = signal.getitimer(signal.ITIMER_PROF)
        signal.setitimer(signal.ITIMER_PROF, min(self._limits.idle_cpu_s, left_s + earned_s))
        self._set_alarm(True)
        if time.monotonic() > self._reported + _REPORT_S:
            self.send(messages.PROGRESS)

    def send(self, kind: bytes, content: messages.Bytes = b"") -> None:
        """Sends a message, however long the parent is busy with other things."""
        self._set_alarm(False)
        messages.send(self._line, kind, content)
        self._reported = time.monotonic()
        self._set_alarm(True)

    def stop(self) -> None:
        """Takes the limits off."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._set_alarm(False)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))

    def _set_alarm(self, is_set: bool) -> None:
        """So that a child that hangs outlives a parent that is gone by the limit only."""
        wall_s = self._limits.idle_wall_s + _GRACE_S
        signal.setitimer(signal.ITIMER_REAL, wall_s if is_set else 0)


def serve(file_number: int, memory_bytes: int) -> None:
    """Gives up what it does not need, then answers calls until the socket is closed."""
    line = socket.socket(fileno=file_number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    messages.send(line, messages.READY, _json(confine(memory_bytes)))
    while True:
        try:
            _, content = messages.receive(line)
        except (EOFError, ConnectionError):
            return
        module, name, args, limits = json.loads(content)
        function = getattr(importlib.import_module(module), name)
        meter = Meter(Limits(*limits), line)
        try:
            _answer(meter, function, args)
        except ConnectionError:  # nobody is there any more
            return
        meter.stop()


def _answer(meter: Meter, function: Callable[..., Any], args: list[Any]) -> None:
    """Calls the function and sends what it gives, or the error it ends with."""
    try:
        given = function(meter, *args)
        facts, size, pieces = given if isinstance(given, Answer) else Answer(given, 0, ())
        meter.send(messages.BEGIN, _json({"facts": facts, "size": size}))
        for piece in pieces:
            meter.send(messages.DATA, piece)
        meter.send(messages.END)
    except ConnectionError:
        raise
    except Exception as error:
        meter.send(messages.ERROR, _json(_in_words(error)))


def _in_words(error: Exception) -> dict[str, Any]:
    """An error as JSON: its class and words; only the user's errors keep their class."""
    kind = type(error)
    if isinstance(error, MemoryError):
        return {"type": "MemoryError", "words": []}
    if isinstance(error, UserError) and all(isinstance(word, str) for word in error.args):
        words = [word[:_LONGEST_WORD] for word in error.args]
        return {"type": f"{kind.__module__}.{kind.__qualname__}", "words": words}
    return {"type": "", "words": [f"{kind.__name__}: {error}"[:_LONGEST_WORD]]}


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
