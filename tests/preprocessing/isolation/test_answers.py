"""Whatever a child process says, its parent believes only what fits the question."""

import os
import socket
import struct

import pytest

from preprocessing.isolation.answers import Call, IncomingAnswer, IsolatedError
from preprocessing.isolation.child import Limits
from preprocessing.isolation.messages import Inbox, UntrueAnswer
from preprocessing.video.damage import DecodeError

BEGIN = ("b", b'{"facts": {"a": 1}, "size": 2}')
DECODE_ERROR = b'{"type": "preprocessing.video.damage.DecodeError", "words": %s}'


@pytest.fixture
def line():
    """(a child's end, a parent's end) of a line."""
    child, parent = socket.socketpair()
    parent.settimeout(60)
    child.setblocking(False)
    with child, parent:
        yield child, parent


def message(kind, content=b""):
    return struct.pack(">cI", kind.encode(), len(content)) + content


def believe(facts, content):
    if content.tobytes() == b"no":
        raise ValueError("it says no")
    return facts["a"], content.tobytes()


def outcome_of(line, said, *, most_bytes=2):
    """What a parent makes of these messages: (value, error), or None when it waits for more."""
    child, parent = line
    call = Call((), Limits(1, 1, 1), most_bytes, believe)
    answer = IncomingAnswer(call, [DecodeError])
    inbox = Inbox(parent, answer.room)
    for kind, content in said:
        os.write(child.fileno(), message(kind, content))  # of a large one, as much as fits
        for arrived in inbox.messages():
            if ended := answer.take(*arrived):
                return ended
    return None


def test_what_fits_the_question_is_believed(line):
    said = [("p", b""), BEGIN, ("d", b"x"), ("p", b""), ("d", b""), ("d", b"y"), ("e", b"")]
    assert outcome_of(line, said) == ((1, b"xy"), None)


def test_a_message_is_complete_wherever_it_is_cut(line):
    child, parent = line
    call = Call((), Limits(1, 1, 1), 2, believe)
    answer = IncomingAnswer(call, [])
    inbox = Inbox(parent, answer.room)
    endings = []
    for byte in message(*BEGIN) + message("d", b"xy") + message("e"):
        os.write(child.fileno(), bytes([byte]))
        endings += [ended for said in inbox.messages() if (ended := answer.take(*said))]
    assert endings == [((1, b"xy"), None)]


def test_an_error_comes_back_with_its_class_and_one_line_of_words(line):
    _, error = outcome_of(line, [BEGIN, ("x", DECODE_ERROR % b'["a", "b\\n\\u001b[31m c"]')])
    assert isinstance(error, DecodeError)
    assert (error.category, error.detail) == ("a", "b ?[31m c")
    _, error = outcome_of(line, [("x", DECODE_ERROR % b'["a", "%s"]' % (b"b" * 100_000))])
    assert len(error.detail) < 600
    invented = b'{"type": "builtins.SystemExit", "words": ["a", ["b"], null]}'
    _, error = outcome_of(line, [("x", invented)])
    assert isinstance(error, IsolatedError)
    assert (str(error), error.cause) == ("a; ['b']; None", "raised")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ([("e", b"")], "a message of kind"),
        ([("d", b"ab")], "more bytes than it announced"),
        ([BEGIN, ("d", b"abc")], "more bytes than it announced"),
        ([BEGIN, ("d", b"ab"), ("d", b"c")], "more bytes than it announced"),
        ([BEGIN, ("d", b"a"), ("e", b"")], "1 of 2 bytes"),
        ([BEGIN, BEGIN], "a message of kind"),
        ([BEGIN, ("d", b"no"), ("e", b"")], "ValueError: it says no"),
        ([("b", b'{"facts": null, "size": 0}'), ("e", b"")], "TypeError"),
        ([("b", b'{"facts": {}, "size": 0}'), ("e", b"")], "KeyError"),
        ([("b", b'{"facts": null, "size": 3}')], "3 bytes instead of at most 2"),
        ([("b", b'{"facts": null, "size": -1}')], "-1 bytes instead"),
        ([("b", b'{"facts": null, "size": 1.0}')], "1.0 bytes instead"),
        ([("b", b'{"facts": null, "size": true}')], "True bytes instead"),
        ([("b", b'{"facts": NaN, "size": 0}')], "NaN is no number"),
        ([("b", b'{"facts": -Infinity, "size": 0}')], "-Infinity is no number"),
        ([("b", b'{"facts": 1%s, "size": 0}' % (b"0" * 9999))], "no JSON"),
        ([("b", b"[" * 100_000)], "no JSON"),
        ([("b", b"\xff\xfe")], "no JSON"),
        ([("b", b"\x80\x04cposix\nsystem\n(S'true'\ntR.")], "no JSON"),
        ([("b", b"[]")], "another beginning"),
        ([("b", b'{"facts": null}')], "another beginning"),
        ([("b", b"x" * 2_000_000)], "a message of 2000000 bytes"),
        ([("x", b"[]")], "another error"),
        ([("x", b'{"type": "", "words": 5}')], "another error"),
        ([("x", DECODE_ERROR % b'["one"]')], "an error of other words"),
        ([("r", b'""')], "a message of kind"),
        ([("?", b"")], "a message of kind"),
    ],
)
def test_what_does_not_fit_the_question_is_a_lie(line, said, named):
    with pytest.raises(UntrueAnswer, match=named):
        outcome_of(line, said)


def test_a_child_that_never_stops_talking_leaves_others_their_turn(line):
    child, parent = line
    os.write(child.fileno(), 300 * message("p"))
    inbox = Inbox(parent, lambda kind, length: memoryview(bytearray(length)))
    assert 0 < len(list(inbox.messages())) < 300


def test_a_hung_up_line_is_the_end(line):
    child, parent = line
    os.write(child.fileno(), b"b\0\0")
    child.close()
    inbox = Inbox(parent, lambda kind, length: memoryview(bytearray(length)))
    with pytest.raises(EOFError):
        list(inbox.messages())
