"""Plain functions in child processes with limits: a crash, a hang, a memory blow-up cost one call.

Children are fresh interpreters that import only what the called function needs, stay for many
calls, and are replaced after any failure. Knows nothing about videos.
"""

import contextlib
import importlib
import os
import pickle
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from videoldm_core.errors import UserError
from videoldm_core.interpreter import python_command, python_environment

MEMORY_BYTES = 4 * 1024**3  # of address space
CALLS_PER_CHILD = 200  # then a fresh one: what a library leaks is given back
_GRACE_S = 3.0  # for a child that was told to end
_CHILD = f"import sys; from {__name__} import serve; serve(*map(int, sys.argv[1:]))"


class IsolatedError(UserError):
    """A call that did not come back: what happened to its process."""


class Call(NamedTuple):
    """One call of the function that a pool runs."""

    args: tuple[Any, ...]
    timeout_s: float


class Outcome(NamedTuple):
    """What became of the call number `index`: a value, or the error it ended with."""

    index: int
    value: Any = None
    # IsolatedError: the process was lost; else what the function raised.
    error: Exception | None = None


class Workers:
    """A pool of child processes; a context manager that leaves none behind."""

    def __init__(self, count: int, *, memory_bytes: int = MEMORY_BYTES) -> None:
        assert count > 0, "a pool needs a worker"
        self._count, self._memory_bytes = count, memory_bytes
        self._children: list[_Child] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end()
        self._children.clear()

    def run(self, function: Callable[..., Any], calls: Iterable[Call]) -> Iterator[Outcome]:
        """Yields an outcome per call, as they finish; errors are yielded, never raised.

        `function` is found by its name in the child, so it stands at the top of a module.
        """
        numbered = enumerate(calls)
        is_exhausted = False
        while True:
            while not is_exhausted and (child := self._idle_child()):
                following = next(numbered, None)
                if following is None:
                    is_exhausted = True
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
            self._children.append(_Child(self._memory_bytes))
            return self._children[-1]
        return None

    def _finished(self, busy: list["_Child"]) -> Iterator[Outcome]:
        patience_s = max(0.0, min(child.deadline for child in busy) - time.monotonic())
        wait([child.connection for child in busy], patience_s)
        outcomes = []
        for child in busy:
            outcome = child.outcome()
            if outcome is None:
                continue
            is_lost = isinstance(outcome.error, IsolatedError)
            if is_lost or child.calls >= CALLS_PER_CHILD:
                child.end(at_once=is_lost)
                self._children.remove(child)
            outcomes.append(outcome)
        yield from outcomes


class _Child:
    """One child process and the call it is busy with."""

    def __init__(self, memory_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            **python_environment(),
            "OMP_NUM_THREADS": "1",  # one core per child, and thread buffers count as memory
            "OPENBLAS_NUM_THREADS": "1",
        }
        with theirs:
            self._process = subprocess.Popen(
                [*python_command(), "-c", _CHILD, str(theirs.fileno()), str(memory_bytes)],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.connection = Connection(ours.detach())
        self.calls = 0
        self.is_busy = False
        self.deadline = 0.0
        self._index = -1
        self._timeout_s = 0.0

    def start(self, index: int, call: Call, function: Callable[..., Any]) -> None:
        self._index, self._timeout_s, self.is_busy = index, call.timeout_s, True
        self.deadline = time.monotonic() + call.timeout_s
        self.calls += 1
        with contextlib.suppress(OSError):  # it died while idle: outcome() says so
            self.connection.send((function.__module__, function.__qualname__, *call))

    def outcome(self) -> Outcome | None:
        """What became of the call; None while it still runs."""
        try:
            if self.connection.poll():
                value, error = self.connection.recv()
                self.is_busy = False
                return Outcome(self._index, value, error)
        except (EOFError, OSError, pickle.UnpicklingError):
            return Outcome(self._index, error=IsolatedError(self._how_it_died()))
        if time.monotonic() < self.deadline:
            return None
        said = f"it took longer than {self._timeout_s:g} s and was stopped"
        return Outcome(self._index, error=IsolatedError(said))

    def _how_it_died(self) -> str:
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return "its process stopped answering"
        if code < 0:
            return f"its process crashed ({signal.Signals(-code).name})"
        return f"its process ended without an answer (exit code {code})"

    def end(self, *, at_once: bool = False) -> None:
        """Ends the process: by hanging up, and by force when that is not enough."""
        self.connection.close()
        try:
            self._process.wait(0 if at_once or self.is_busy else _GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(file_number: int, memory_bytes: int) -> None:
    """The child's side: answers the calls that come over a socket until it is closed."""
    line = Connection(file_number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # some systems know no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    while True:
        try:
            module, name, args, timeout_s = line.recv()
        except EOFError:
            return
        # Rings in the kernel, so that a child that hangs in C outlives its parent by seconds only.
        signal.setitimer(signal.ITIMER_REAL, timeout_s + 2 * _GRACE_S)
        answer = _answer(module, name, args, memory_bytes)
        signal.setitimer(signal.ITIMER_REAL, 0)
        line.send_bytes(answer)


def _answer(module: str, name: str, args: tuple[Any, ...], memory_bytes: int) -> bytes:
    """The pickled (value, error) of one call."""
    try:
        return pickle.dumps((getattr(importlib.import_module(module), name)(*args), None))
    except MemoryError:
        said = f"it needs more than the {memory_bytes / 1024**3:.3g} GiB of memory it may use"
        return pickle.dumps((None, IsolatedError(said)))
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception that cannot travel is told in words
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return pickle.dumps((None, error))
