"""Limits on child processes. They find the functions below by the name of this module."""

import os
import signal
import time

import pytest

from preprocessing.isolation import messages
from preprocessing.isolation import workers as isolation
from preprocessing.isolation.child import Answer, Limits
from preprocessing.isolation.workers import Call, IsolatedError, Workers
from preprocessing.video.damage import DecodeError
from tests.preprocessing.isolation.running import GENEROUS, run_isolated
from videoldm_core.errors import UserError


def double(progress, value):
    return 2 * value


def refuse(progress, value):
    raise UserError(f"no {value}")


def refuse_video(progress, category, detail):
    raise DecodeError(category, detail)


def crash(progress):
    os.kill(os.getpid(), signal.SIGSEGV)


def end_by_unknown_signal(progress):
    os.kill(os.getpid(), signal.SIGRTMIN + 5)


def leave(progress):
    os._exit(7)


def sleep_in_c(progress, seconds):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    time.sleep(seconds)


def compute(progress, seconds, earned_s=0.0):
    """Uses processor time, with progress every twentieth of a second of it."""
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        step_ends = time.process_time() + 0.05
        while time.process_time() < step_ends:
            pass
        if earned_s:
            progress(earned_s)
    return "done"


def report(progress, count):
    for _ in range(count):
        messages.send(progress._line, messages.PROGRESS)
        time.sleep(0.02)  # so that each comes alone
    return count


def swallow_memory(progress, count):
    return len(bytearray(count))


def process_id(progress, _):
    return os.getpid()


def bytes_of(progress, announced, *counts):
    return Answer("some", announced, [bytes([count % 256]) * count for count in counts])


def break_off(progress):
    def pieces():
        yield b"123"
        raise UserError("the rest is missing")

    return Answer(None, 6, pieces())


def say(progress, *said):
    """Sends messages as a child in the hands of a stranger might, then waits."""
    for kind, content in said:
        messages.send(progress._line, kind.encode(), content.encode())
    time.sleep(600)


def get_on_for_ever(progress):
    while True:
        messages.send(progress._line, messages.PROGRESS)
        time.sleep(0.01)


def unforeseen(progress):
    class Local(Exception):
        pass

    raise Local("local\n\033[31mred")


def as_bytes(facts, content):
    return facts, content.tobytes()


def test_a_value_comes_back():
    assert run_isolated(double, 21) == 42
    assert run_isolated(double, "näme\udcff") == "näme\udcff" * 2


def test_bytes_come_back_in_as_many_pieces_as_they_are_made():
    assert run_isolated(bytes_of, 0, read=as_bytes) == ("some", b"")
    assert run_isolated(bytes_of, 5, 2, 3, most_bytes=9, read=as_bytes) == ("some", b"\2\2\3\3\3")
    many = [3_000_000, 1, 0, 2_000_000]
    value = run_isolated(bytes_of, sum(many), *many, most_bytes=sum(many), read=as_bytes)
    assert value == ("some", b"".join(bytes([count % 256]) * count for count in many))


def test_what_the_function_raises_is_raised_here():
    with pytest.raises(UserError, match="no rain"):
        run_isolated(refuse, "rain")
    with pytest.raises(DecodeError, match="^truncated: at the end$") as raised:
        run_isolated(refuse_video, "truncated", "at the end")
    assert raised.value.category == "truncated"
    with pytest.raises(UserError, match="the rest is missing"):
        run_isolated(break_off, most_bytes=6)


def test_an_error_of_another_class_is_told_in_one_line_of_words():
    with pytest.raises(IsolatedError, match=r"^Local: local \?\[31mred$") as raised:
        run_isolated(unforeseen)
    assert raised.value.cause == "raised"


def test_a_crash_is_named():
    with pytest.raises(IsolatedError, match="crashed .SIGSEGV"):
        run_isolated(crash)
    with pytest.raises(IsolatedError, match=r"crashed .signal 39"):
        run_isolated(end_by_unknown_signal)
    with pytest.raises(IsolatedError, match="without an answer .exit code 7"):
        run_isolated(leave)


def test_a_call_that_only_waits_is_ended_by_the_clock():
    with pytest.raises(IsolatedError, match="it waited 1 s without progress") as raised:
        run_isolated(sleep_in_c, 600, limits=GENEROUS._replace(idle_wall_s=1))
    assert raised.value.cause == "waiting"


def test_a_call_that_computes_without_progress_is_ended_by_its_processor_time():
    with pytest.raises(
        IsolatedError, match=r"^it used 0.5 s of processor time without progress$"
    ) as raised:
        run_isolated(compute, 600, limits=GENEROUS._replace(idle_cpu_s=0.5))
    assert raised.value.cause == "idle"


def test_progress_extends_the_time_of_a_call_as_far_as_it_is_worth():
    limits = GENEROUS._replace(idle_cpu_s=0.5)
    assert run_isolated(compute, 2.0, 0.2, limits=limits) == "done"
    with pytest.raises(IsolatedError, match="without progress"):
        run_isolated(compute, 600, 0.02, limits=limits)


def test_a_call_that_gets_on_for_ever_is_ended_by_all_its_processor_time():
    with pytest.raises(IsolatedError, match="more than 1 s of processor time") as raised:
        run_isolated(compute, 600, 1.0, limits=GENEROUS._replace(total_cpu_s=1))
    assert raised.value.cause == "total"


def test_a_child_that_only_says_that_it_gets_on_is_ended_by_the_clock():
    with pytest.raises(IsolatedError) as raised:
        run_isolated(get_on_for_ever, limits=Limits(60, 1, 0.1))
    assert raised.value.cause == "waiting"


def test_limits_are_those_of_each_call_and_not_of_the_process():
    limits = Limits(idle_cpu_s=0.5, idle_wall_s=300, total_cpu_s=1.5)
    with Workers(1) as workers:
        calls = [Call((0.3,), limits)] * 8
        outcomes = list(workers.run(compute, calls))
        assert [outcome.value for outcome in outcomes] == ["done"] * 8
        ids = {o.value for o in workers.run(process_id, [Call((1,), limits)] * 2)}
    assert len(ids) == 1


def test_a_memory_explosion_is_contained():
    with pytest.raises(IsolatedError, match="more than the 1 GiB of memory") as raised:
        run_isolated(swallow_memory, 3 * 1024**3, memory_bytes=1024**3)
    assert raised.value.cause == "memory"
    with pytest.raises(IsolatedError, match="more than the 1 GiB of memory"):
        run_isolated(double, 1, memory_bytes=1024**3, most_bytes=3 * 1024**3)


def test_a_child_that_lies_costs_its_call_and_its_process():
    """All kinds of lies: test_answers.py."""
    with Workers(1) as workers:
        said = [("b", '{"facts": null, "size": 10}'), ("d", "more than it was asked for")]
        (outcome,) = workers.run(say, [Call(said, GENEROUS, 2)])
        assert isinstance(outcome.error, IsolatedError)
        assert outcome.error.cause == "untrue"
        assert "cannot be true (10 bytes instead of at most 2)" in str(outcome.error)
        (after,) = workers.run(double, [Call((4,), GENEROUS)])
        assert after.value == 8


def test_a_child_is_never_unpickled():
    """What was read with pickle.loads before: a message that runs a command."""
    pickled = "cos\nsystem\n(S'true'\ntR."
    for kind in "bex":
        with pytest.raises(IsolatedError, match="cannot be true"):
            run_isolated(say, (kind, pickled))


def test_a_pool_goes_on_after_failures_and_leaves_no_process():
    with Workers(2) as workers:
        calls = [Call((index,), GENEROUS) for index in range(6)]
        assert {o.index: o.value for o in workers.run(double, calls)} == {
            i: 2 * i for i in range(6)
        }
        failed = workers.run(crash, [Call((), GENEROUS)] * 3)
        assert {type(o.error) for o in failed} == {IsolatedError}
        ids = {o.value for o in workers.run(process_id, [Call((i,), GENEROUS) for i in range(10)])}
        assert 1 <= len(ids) <= 2, "children are used again"
    for process in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_calls_are_drawn_only_when_a_child_is_free():
    drawn = []

    def calls():
        for index in range(100):
            drawn.append(index)
            yield Call((index,), GENEROUS)

    with Workers(1) as workers:
        next(workers.run(double, calls()))
    assert len(drawn) <= 2


def test_a_pool_that_is_left_early_kills_what_runs():
    with Workers(2) as workers:
        outcomes = workers.run(sleep_in_c, [Call((6000,), GENEROUS), Call((0,), GENEROUS)])
        assert next(outcomes).index == 1
        processes = [child._process for child in workers._children]
    assert all(process.poll() is not None for process in processes)


class Clock:
    """The time that a pool sees."""

    def __init__(self, step_s=0.0):
        self.now_s, self._step_s = 0.0, step_s

    def monotonic(self):
        self.now_s += self._step_s
        return self.now_s


def test_a_parent_that_is_busy_with_other_things_stops_no_child(monkeypatch):
    """Frames wait in the socket while the parent encodes those before."""
    clock = Clock()
    monkeypatch.setattr(isolation, "time", clock)
    size = 4_000_000
    lengths = []
    with Workers(2) as workers:
        for outcome in workers.run(bytes_of, [Call((size, size), GENEROUS, size, as_bytes)] * 4):
            lengths.append(len(outcome.value[1]))
            clock.now_s += 10_000
    assert lengths == [size] * 4


def test_progress_extends_the_time_of_a_call_that_waits(monkeypatch):
    monkeypatch.setattr(isolation, "time", Clock(step_s=1.0))  # whatever comes takes a second
    limits = GENEROUS._replace(idle_wall_s=20)
    assert run_isolated(report, 100, limits=limits) == 100
    with pytest.raises(IsolatedError, match="it waited"):
        run_isolated(report, 100, limits=limits._replace(total_cpu_s=1))
