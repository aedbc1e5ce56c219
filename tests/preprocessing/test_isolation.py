"""Limits on child processes. They find the functions below by the name of this module."""

import os
import signal
import sys
import time

import pytest

from preprocessing.isolation import MEMORY_BYTES, Call, IsolatedError, Workers
from videoldm_core.errors import UserError


def double(value):
    return 2 * value


def refuse(value):
    raise UserError(f"no {value}")


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(7)


def sleep_in_c(seconds):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    time.sleep(seconds)


def swallow_memory(count):
    return len(bytearray(count))


def process_id(_):
    return os.getpid()


def imported_by_decoding():
    import preprocessing.admission  # noqa: F401

    return sorted(name for name in ("torch", "decord", "prefect") if name in sys.modules)


def unpicklable_error():
    class Local(Exception):
        pass

    raise Local("local")


def run_isolated(function, *args, timeout_s: float, memory_bytes: int = MEMORY_BYTES):
    """One call in a pool of one: its value, or the error it ended with."""
    with Workers(1, memory_bytes=memory_bytes) as workers:
        (outcome,) = workers.run(function, [Call(args, timeout_s)])
    if outcome.error:
        raise outcome.error
    return outcome.value


def test_a_value_comes_back():
    assert run_isolated(double, 21, timeout_s=30) == 42


def test_what_the_function_raises_is_raised_here():
    with pytest.raises(UserError, match="no rain"):
        run_isolated(refuse, "rain", timeout_s=30)


def test_an_error_that_cannot_travel_is_told_in_words():
    with pytest.raises(RuntimeError, match="Local: local"):
        run_isolated(unpicklable_error, timeout_s=30)


def test_a_crash_is_named():
    with pytest.raises(IsolatedError, match="crashed .SIGSEGV"):
        run_isolated(crash, timeout_s=30)
    with pytest.raises(IsolatedError, match="without an answer .exit code 7"):
        run_isolated(leave, timeout_s=30)


def test_a_hang_is_ended_at_its_limit():
    begun = time.monotonic()
    with pytest.raises(IsolatedError, match="longer than 1 s and was stopped"):
        run_isolated(sleep_in_c, 60, timeout_s=1)
    assert time.monotonic() - begun < 10


def test_a_memory_explosion_is_contained():
    with pytest.raises(IsolatedError, match="more than the 1 GiB of memory"):
        run_isolated(swallow_memory, 3 * 1024**3, timeout_s=30, memory_bytes=1024**3)


def test_a_pool_goes_on_after_failures_and_leaves_no_process():
    with Workers(2) as workers:
        calls = [Call((index,), 30) for index in range(6)]
        assert {o.index: o.value for o in workers.run(double, calls)} == {
            i: 2 * i for i in range(6)
        }
        assert {type(o.error) for o in workers.run(crash, [Call((), 30)] * 3)} == {IsolatedError}
        ids = {o.value for o in workers.run(process_id, [Call((i,), 30) for i in range(10)])}
        assert 1 <= len(ids) <= 2, "children are used again"
    for process in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_calls_are_drawn_only_when_a_child_is_free():
    drawn = []

    def calls():
        for index in range(100):
            drawn.append(index)
            yield Call((index,), 30)

    with Workers(1) as workers:
        next(workers.run(double, calls()))
    assert len(drawn) <= 2


def test_a_pool_that_is_left_early_kills_what_runs():
    begun = time.monotonic()
    with Workers(2) as workers:
        outcomes = workers.run(sleep_in_c, [Call((60,), 90), Call((0,), 30)])
        assert next(outcomes).index == 1
    assert time.monotonic() - begun < 20


def test_children_that_decode_import_no_torch():
    assert run_isolated(imported_by_decoding, timeout_s=60) == []
