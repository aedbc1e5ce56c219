"""Names of files as text, and back."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.sources.names import path_below, printable, written_name


@given(st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw))
def test_any_name_comes_back_to_the_byte_from_text_that_any_file_can_hold(raw):
    path = Path(os.fsdecode(raw.lstrip(b"/") or b"a"))
    name = written_name(path)
    assert path_below(Path("/videos"), name) == Path("/videos") / path
    assert name.encode("utf-8")
    assert not set(name) & set("\n\r\t\x1b\x7f\u202e\u2028")


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=2, max_size=2, unique=True))
def test_two_names_are_never_written_alike(names):
    first, second = (os.fsdecode(raw.replace(b"\0", b"0")) for raw in names)
    assert (written_name(first) == written_name(second)) == (first == second)


@pytest.mark.parametrize(
    ("raw", "written"),
    [
        (b"plain.mp4", "plain.mp4"),
        ("sub/Zürich 東京 👩‍🚗 'a' \"b\" <script>.mp4".encode(), None),
        (b"caf\xe9.mp4", r"caf\xe9.mp4"),
        (rb"caf\xe9.mp4", r"caf\x5cxe9.mp4"),
        (b"two\nlines\tand\x1b[31mred.mp4", r"two\x0alines\x09and\x1b[31mred.mp4"),
        ("gpj.\u202e4pm.exe".encode(), r"gpj.\xe2\x80\xae4pm.exe"),
    ],
)
def test_names_stay_as_they_are_where_they_can(raw, written):
    assert written_name(os.fsdecode(raw)) == (raw.decode() if written is None else written)


def test_somebody_elses_words_become_one_harmless_line():
    assert printable("bad\n\n  tag \x1b[2J\udce9 \ud800 C:\\a") == (
        "bad tag \\x1b[2J\\xe9 \\xed\\xa0\\x80 C:\\a"
    )
