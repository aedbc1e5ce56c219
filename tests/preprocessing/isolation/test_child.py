"""The kernel keeps the limits of a call."""

import resource
import signal
import socket

import pytest

from preprocessing.isolation import child, messages
from preprocessing.isolation.child import Limits, Meter

LIMITS = Limits(idle_cpu_s=100, idle_wall_s=1000, total_cpu_s=5000)


def cpu_left_s():
    return signal.getitimer(signal.ITIMER_PROF)[0]


def alarm_s():
    return signal.getitimer(signal.ITIMER_REAL)[0]


@pytest.fixture
def lines():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def meter(lines):
    meter = Meter(LIMITS, lines[0])
    yield meter
    meter.stop()


def test_progress_fills_the_time_that_is_left_but_no_more_than_it_began_with(meter):
    assert cpu_left_s() == pytest.approx(100, abs=1)
    signal.setitimer(signal.ITIMER_PROF, 40)
    meter(25)
    assert cpu_left_s() == pytest.approx(65, abs=1)
    meter(1e9)
    assert cpu_left_s() == pytest.approx(100, abs=1)


def test_no_alarm_rings_while_the_parent_keeps_a_child_waiting(meter, lines, monkeypatch):
    assert alarm_s() == pytest.approx(1006, abs=60)
    seen = []
    monkeypatch.setattr(messages, "send", lambda *said: seen.append((alarm_s(), *said)))
    meter.send(b"d", b"frame")
    assert seen == [(0, lines[0], b"d", b"frame")]
    assert alarm_s() == pytest.approx(1006, abs=60)


def test_progress_is_reported_now_and_then(meter, lines, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(child.time, "monotonic", lambda: clock[0])
    meter.send(messages.DATA, b"")
    sent = []
    monkeypatch.setattr(messages, "send", lambda line, kind, content: sent.append(kind))
    for clock[0] in (0.1, 0.9, 1.1, 1.2, 2.0, 2.2):
        meter(1.0)
    assert sent == [messages.PROGRESS] * 2


def test_after_a_call_no_limit_is_left(lines):
    before = resource.getrlimit(resource.RLIMIT_CPU)
    meter = Meter(LIMITS, lines[0])
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] >= 5000
    meter.stop()
    assert (cpu_left_s(), alarm_s()) == (0, 0)
    assert resource.getrlimit(resource.RLIMIT_CPU) == (before[1], before[1])
