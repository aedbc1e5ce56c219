"""Runs one command; none of its processes outlives the holder of the leash, our standard input.

Run as a script, by path, so that it starts at once. When standard input closes, because the
launcher let go or was killed, every process of the command is ended. Processes are found by a
mark in their environment: torchrun puts its workers into sessions of their own, so ending one
process group would leave them holding accelerators.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

MARK = "VIDEOLDM_LAUNCH"


def marked_processes(mark: str) -> list[int]:
    """Every live process that was started under `mark`, except the calling one."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            is_ours = wanted in entry.read_bytes().split(b"\0")  # empty once it has ended
        except OSError:  # gone meanwhile, or somebody else's
            continue
        if is_ours and int(entry.parent.name) != os.getpid():
            found.append(int(entry.parent.name))
    return found


def end_marked(mark: str, grace_s: float) -> None:
    """Asks every process under `mark` to end, then kills those that have not after `grace_s`."""
    _signal(marked_processes(mark), signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while marked_processes(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    while left := marked_processes(mark):
        _signal(left, signal.SIGKILL)
        time.sleep(0.02)


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _disregard(number: int, frame: object) -> None:
    """A handler, not SIG_IGN, because the command would inherit an ignored signal."""


def main() -> int:
    """`leash.py GRACE_S COMMAND...`: the command's exit code, once its processes are gone."""
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    mark = os.environ[MARK]
    # Only the leash decides, and it must outlive what it holds.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _disregard)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def wait_for_release() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock a daemon thread would hold at exit
            continue
        end_marked(mark, grace_s)

    threading.Thread(target=wait_for_release, daemon=True).start()
    exit_code = child.wait()
    end_marked(mark, grace_s)
    return exit_code if exit_code >= 0 else 128 - exit_code


if __name__ == "__main__":
    sys.exit(main())
