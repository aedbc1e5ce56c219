"""Locks: one holder at a time, also where the file system has no flock."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from videoldm_core.system.locks import Held, Holder, lock

ROOT = Path(__file__).parents[3]
WITHOUT_FLOCK = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]
HOLD = """
import errno, fcntl, os, sys
from pathlib import Path
from videoldm_core.system.locks import Held, lock
if sys.argv[2] != "0":
    def refuse(file, operation):
        raise OSError(int(sys.argv[2]), "refused")
    fcntl.flock = refuse
try:
    with lock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except Held:
    print("refused", flush=True)
"""


def other_process(path: Path, number: int) -> subprocess.Popen[str]:
    """Holds the lock until it is ended; on a file system that answers flock with `number`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(number)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def without_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("number", [0, *WITHOUT_FLOCK])
def test_a_second_process_is_refused_until_the_first_has_gone(tmp_path, monkeypatch, number):
    if number:
        without_flock(monkeypatch, number)
    path = tmp_path / ".lock"
    other = other_process(path, number)
    with pytest.raises(Held) as refused, lock(path):
        pass
    if number:
        assert refused.value.holder
        assert refused.value.holder.process == other.pid
        assert f"process {other.pid} on host " in refused.value.hint
        assert f"delete '{path}.held'" in refused.value.hint
    other.communicate()
    with lock(path) as named:
        assert named == (tmp_path / ".lock.held" if number else None)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_what_a_killed_process_left_holds_nobody_up(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.ENOSYS)
    other = other_process(tmp_path / ".lock", errno.ENOSYS)
    other.kill()
    other.communicate()
    assert (tmp_path / ".lock.held").exists()
    with lock(tmp_path / ".lock") as named:
        assert named
        assert Holder.model_validate_json(named.read_text()).process == os.getpid()


def test_a_process_that_has_the_number_of_the_one_that_left_it_is_another(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.ENOSYS)
    ours = Holder.this_process()
    left = ours.model_copy(update={"started": ours.started - 1})
    (tmp_path / ".lock.held").write_text(left.model_dump_json())
    with lock(tmp_path / ".lock") as named:
        assert named


@pytest.mark.parametrize("elsewhere", [{"host": "node7"}, {"host": "node7", "process": 2**22}])
def test_a_process_of_another_machine_is_named_and_never_passed_over(
    tmp_path, monkeypatch, elsewhere
):
    without_flock(monkeypatch, errno.ENOSYS)
    holder = Holder.this_process().model_copy(update={"boot": "another"} | elsewhere)
    (tmp_path / ".lock.held").write_text(holder.model_dump_json())
    with pytest.raises(Held) as refused, lock(tmp_path / ".lock"):
        pass
    assert f"process {holder.process} on host 'node7', since " in refused.value.hint
    assert "if it runs no more, delete " in refused.value.hint
    assert (tmp_path / ".lock.held").exists()


def test_a_holder_that_was_killed_before_it_wrote_its_name_is_said(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.ENOSYS)
    (tmp_path / ".lock.held").touch()
    with pytest.raises(Held, match="another process") as refused, lock(tmp_path / ".lock"):
        pass
    assert refused.value.hint.startswith("it did not write who it is; if it runs no more, delete ")


@pytest.mark.parametrize("number", [0, errno.ENOSYS])
def test_who_waits_is_served_when_the_holder_has_gone(tmp_path, monkeypatch, number):
    if number:
        without_flock(monkeypatch, number)
    other = other_process(tmp_path / ".lock", number)
    served = threading.Event()

    def wait() -> None:
        with lock(tmp_path / ".lock", waits=True):
            served.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not served.wait(0.5)
    other.communicate()
    waiting.join(60)
    assert served.is_set()


def test_of_many_that_find_what_an_ended_process_left_one_at_a_time_holds_it(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.ENOSYS)
    ours = Holder.this_process()
    left = ours.model_copy(update={"started": ours.started - 1})
    (tmp_path / ".lock.held").write_text(left.model_dump_json())
    holding, most = [], []
    guard = threading.Lock()

    def take() -> None:
        for _ in range(5):
            with lock(tmp_path / ".lock", waits=True):
                with guard:
                    holding.append(1)
                    most.append(len(holding))
                with guard:
                    holding.pop()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert most == [1] * 40


def test_an_error_of_the_disk_is_no_lock(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), lock(tmp_path / ".lock"):
        pass
