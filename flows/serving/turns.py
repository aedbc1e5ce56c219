"""What one request to a served release may ask for, and whose turn it is.

A release is sampled by strangers: what they may ask for is a setting of the release, kept with it.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    REQUEST_LIMIT_EXCEEDED,
    TEMPORARILY_UNAVAILABLE,
)

from flows.config.request_limits import RequestLimits
from videoldm_core.errors import UserError

POLL_S = 0.2  # how often a waiting request looks whether it is to go on waiting


class Refused(UserError, MlflowException):
    """A sentence for whoever sent a request; MLflow's servers answer it without a traceback.

    Args:
        code: one of MLflow's, which decides the status of the answer.
    """

    def __init__(self, sentence: str, code: int = INVALID_PARAMETER_VALUE) -> None:
        MlflowException.__init__(self, sentence, error_code=code)


def server_is_ending() -> bool:
    """Whether the server, uvicorn under MLflow, was asked to end: it then waits for its requests.

    Its own handler of the signal is a method of the server. Where nobody handles it, the signal
    ends the process itself.
    """
    handler = signal.getsignal(signal.SIGTERM)
    return bool(getattr(getattr(handler, "__self__", None), "should_exit", False))


class Turns:
    """Requests pass one at a time; some wait, for a while, and others are refused at once.

    One at a time, as all share one set of models, whose memory is reckoned for one video.
    """

    def __init__(
        self, limits: RequestLimits, *, is_ending: Callable[[], bool] = server_is_ending
    ) -> None:
        self._limits, self._is_ending = limits, is_ending
        self._running = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + limits.waiting)

    @contextmanager
    def turn(self) -> Iterator[Callable[[], None]]:
        """Waits for a turn, and gives what a generation calls between its steps.

        Raises:
            Refused: too many wait, the time is over, or the server ends; so does what is given.
        """
        if not self._places.acquire(blocking=False):
            raise Refused(
                f"{self._limits.waiting} requests wait already, as many as this release lets wait; "
                "ask again later.",
                REQUEST_LIMIT_EXCEEDED,
            )
        try:
            keep_going = self._watch(time.monotonic() + self._limits.seconds)
            while not self._running.acquire(timeout=POLL_S):
                keep_going()
            try:
                keep_going()
                yield keep_going
            finally:
                self._running.release()
        finally:
            self._places.release()

    def _watch(self, deadline: float) -> Callable[[], None]:
        def keep_going() -> None:
            if self._is_ending():
                raise Refused("The server ends; ask again later.", TEMPORARILY_UNAVAILABLE)
            if time.monotonic() > deadline:
                raise Refused(
                    f"The request was not done within {self._limits.seconds:g} s, the limit of "
                    "this release; ask for fewer frames.",
                    TEMPORARILY_UNAVAILABLE,
                )

        return keep_going
