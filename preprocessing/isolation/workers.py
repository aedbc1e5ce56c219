"""Plain functions in child processes with limits: a crash, a hang, a memory blow-up cost one call.

Children are fresh interpreters that import only what the called function needs (child.py), stay for
many calls, and are replaced after any failure. Knows nothing about videos.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from preprocessing.isolation import messages
from preprocessing.isolation.answers import (
    Call,
    Cause,
    IncomingAnswer,
    IsolatedError,
    Outcome,
    one_line,
)
from preprocessing.isolation.child import Limits, nothing
from videoldm_core.errors import UserError
from videoldm_core.system.interpreter import python_command, python_environment

__all__ = ["MEMORY_BYTES", "Call", "IsolatedError", "Limits", "Outcome", "Workers"]

MEMORY_BYTES = 4 * 1024**3  # of address space
CALLS_PER_CHILD = 200  # then a fresh one: what a library leaks is given back
LONGEST_START_S = 600.0  # of a child, on a machine that is busy
_GRACE_S = 3.0  # for a child that was told to end
_SEND_S = 60.0  # for a child to take its next call
_TO_START = Limits(idle_cpu_s=60.0, idle_wall_s=600.0, total_cpu_s=600.0)
# By the clock, a call may take so many times its processor time, however often it says that it
# gets on: a child in the hands of a hostile file can say so for ever.
_MOST_WAITING = 10
_CHILD = (
    "import sys; from preprocessing.isolation.child import serve; serve(*map(int, sys.argv[1:]))"
)
# All that a child sees of the environment: no keys, tokens or passwords.
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LANGUAGE", "TMPDIR", "TZ")


class Workers:
    """A pool of child processes; a context manager that leaves none behind."""

    # Why children can reach the network; empty where they cannot, None before one has started.
    network: str | None = None

    def __init__(
        self,
        count: int,
        *,
        errors: Sequence[type[UserError]] = (UserError,),
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """
        Args:
            errors: of the function, that come back as they are; others as words.
        """
        assert count > 0, "a pool needs a worker"
        self._count, self._errors, self._memory_bytes = count, errors, memory_bytes
        self._children: list[_Child] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end()
        self._children.clear()

    def run(self, function: Callable[..., Any], calls: Iterable[Call]) -> Iterator[Outcome]:
        """Yields an outcome per call, as they finish; errors are yielded, never raised.

        `function` is found by its name in the child, so it stands at the top of a module. It is
        called with a `Progress` and the call's arguments, and gives JSON or an `Answer`.
        """
        numbered = enumerate(calls)
        is_exhausted = False
        while True:
            while not is_exhausted and (child := self._idle_child()):
                following = next(numbered, None)
                if following is None:
                    is_exhausted = True
                elif following[1].most_bytes > self._memory_bytes:
                    yield Outcome(following[0], error=_too_large(self._memory_bytes))
                else:
                    child.start(*following, function)
            busy = [child for child in self._children if child.is_busy]
            if not busy:
                return
            yield from self._finished(busy)

    def _idle_child(self) -> "_Child | None":
        for child in self._children:
            if not child.is_busy:
                return child
        if len(self._children) < self._count:
            self._children.append(_Child(self._errors, self._memory_bytes))
            return self._children[-1]
        return None

    def _finished(self, busy: list["_Child"]) -> Iterator[Outcome]:
        begun = time.monotonic()
        wait([child.line for child in busy], min(child.patience_s for child in busy))
        waited_s = time.monotonic() - begun
        outcomes = []
        for child in busy:
            outcome = child.outcome(waited_s)
            self.network = self.network if child.network is None else child.network
            if outcome is None:
                continue
            error = outcome.error
            is_lost = isinstance(error, IsolatedError) and error.cause != "raised"
            if is_lost or child.calls >= CALLS_PER_CHILD:
                child.end(at_once=is_lost)
                self._children.remove(child)
            outcomes.append(outcome)
        yield from outcomes


def network_in_reach() -> str:
    """Why a child of this process could reach the network; empty if it could not. Starts one.

    Raises:
        IsolatedError: it does not start.
    """
    with Workers(1) as pool:
        (outcome,) = pool.run(nothing, [Call((), _TO_START)])
        if outcome.error:
            raise outcome.error
        assert pool.network is not None, "a child that answers has said what it reaches"
        return pool.network


class _Child:
    """One child process and the call it is busy with."""

    def __init__(self, errors: Sequence[type[UserError]], memory_bytes: int) -> None:
        self.line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*_interpreter(), "-c", _CHILD, str(theirs.fileno()), str(memory_bytes)],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.line.settimeout(_SEND_S)
        self._inbox = messages.Inbox(self.line, self._room)
        self._errors, self._memory_bytes = errors, memory_bytes
        self.network: str | None = None  # why it reaches the network; None: it has not started
        self.calls = 0
        self.is_busy = False
        self._index = -1
        self._limits = Limits(0.0, 0.0, 0.0)
        self._answer = IncomingAnswer(Call((), self._limits), ())
        self._silent_s = self._waited_s = 0.0  # while the parent listened

    def start(self, index: int, call: Call, function: Callable[..., Any]) -> None:
        self._index, self._limits, self.is_busy = index, call.limits, True
        self._answer = IncomingAnswer(call, self._errors)
        self._silent_s = self._waited_s = 0.0
        self.calls += 1
        asked = [function.__module__, function.__qualname__, call.args, call.limits]
        with contextlib.suppress(OSError):  # it died while idle: outcome() says so
            messages.send(self.line, messages.CALL, json.dumps(asked).encode())

    @property
    def patience_s(self) -> float:
        """How long it may be silent from now on, s."""
        if self.network is None:
            return max(0.0, LONGEST_START_S - self._silent_s)
        most_s = self._limits.idle_wall_s + _MOST_WAITING * self._limits.total_cpu_s
        return max(0.0, min(self._limits.idle_wall_s - self._silent_s, most_s - self._waited_s))

    def outcome(self, waited_s: float) -> Outcome | None:
        """What became of the call; None while it still runs.

        Args:
            waited_s: how long the parent has listened for it since the last time.
        """
        self._silent_s += waited_s
        self._waited_s += waited_s
        try:
            for kind, content in self._inbox.messages():
                self._silent_s = 0.0
                if ended := self._take(kind, content):
                    self.is_busy = False
                    return ended
        except messages.UntrueAnswer as error:
            said = f"its process answered what cannot be true ({one_line(str(error))})"
            return self._lost(said, "untrue")
        except (EOFError, OSError):
            return self._lost(*self._how_it_died())
        if self.patience_s > 0:
            return None
        return self._lost(_waited(self._silent_s), "waiting")

    def _room(self, kind: bytes, length: int) -> memoryview:
        return self._answer.room(kind, length)

    def _take(self, kind: bytes, content: memoryview) -> Outcome | None:
        if self.network is None:
            said = messages.parse(content)
            if kind != messages.READY or not isinstance(said, str):
                raise messages.UntrueAnswer("no greeting")
            self.network = one_line(said)
            self._silent_s = self._waited_s = 0.0
            return None
        ended = self._answer.take(kind, content)
        if ended is None:
            return None
        value, error = ended
        if isinstance(error, IsolatedError) and error.cause == "memory":
            error = _too_large(self._memory_bytes)
        return Outcome(self._index, value, error)

    def _lost(self, said: str, cause: Cause) -> Outcome:
        return Outcome(self._index, error=IsolatedError(said, cause))

    def _how_it_died(self) -> tuple[str, Cause]:
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return "its process stopped answering", "lost"
        limits = self._limits
        ends: dict[int, tuple[str, Cause]] = {
            -signal.SIGPROF: (
                f"it used {limits.idle_cpu_s:g} s of processor time without progress",
                "idle",
            ),
            -signal.SIGXCPU: (
                f"it used more than {limits.total_cpu_s:g} s of processor time",
                "total",
            ),
            -signal.SIGALRM: (_waited(limits.idle_wall_s), "waiting"),
        }
        if code in ends:
            return ends[code]
        if code < 0:
            return f"its process crashed ({_signal_name(-code)})", "lost"
        return f"its process ended without an answer (exit code {code})", "lost"

    def end(self, *, at_once: bool = False) -> None:
        """Ends the process: by hanging up, and by force when that is not enough."""
        self.line.close()
        try:
            self._process.wait(0 if at_once or self.is_busy else _GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _too_large(memory_bytes: int) -> IsolatedError:
    allowed = f"{memory_bytes / 1024**3:.3g} GiB"
    return IsolatedError(f"it needs more than the {allowed} of memory it may use", "memory")


def _waited(seconds: float) -> str:
    return f"it waited {seconds:.0f} s without progress"


def _signal_name(number: int) -> str:
    known = {member.value for member in signal.Signals}
    return signal.Signals(number).name if number in known else f"signal {number}"


def _interpreter() -> list[str]:
    """Python, reading file names as this process does."""
    return [*python_command(), "-X", f"utf8={sys.flags.utf8_mode}"]


def _environment() -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")
    }
    return {
        **kept,
        **python_environment(),
        "OMP_NUM_THREADS": "1",  # one core per child, and thread buffers count as memory
        "OPENBLAS_NUM_THREADS": "1",
    }
