"""Runs one command, on one process or several; none of them outlives the holder of the leash, our
standard input.

Run as a script, by path, so that it starts at once. When standard input closes, because the
launcher let go or was killed, every process of the command is ended; when one process of several
fails, so are the others. Processes are found by a mark in their environment: what they start may
put itself into a session of its own, so ending one process group would leave it behind.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

MARK = "VIDEOLDM_LAUNCH"


class End(NamedTuple):
    """How a process of the command ended."""

    rank: int
    exit_code: int  # as subprocess has it: -9 was ended by signal 9


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


def log_of_rank(log: Path, rank: int) -> Path:
    """The log of one process: `log` of the first, "log.rank1.txt" of the second."""
    return log.with_name(f"{log.stem}.rank{rank}{log.suffix}") if rank else log


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _disregard(number: int, frame: object) -> None:
    """A handler, not SIG_IGN, because the command would inherit an ignored signal."""


def _start(command: list[str], processes: int, log: Path | None) -> list[subprocess.Popen]:
    """Starts the processes, in the order of their ranks."""
    if not processes:
        return [_popen(command, {}, log)]
    world = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return [
        _popen(command, world | {"RANK": rank, "LOCAL_RANK": rank}, log and log_of_rank(log, rank))
        for rank in range(processes)
    ]


def _popen(command: list[str], numbers: dict[str, int], log: Path | None) -> subprocess.Popen:
    """Starts one process, which inherits the files that were handed to us."""
    with contextlib.ExitStack() as stack:
        output = None if log is None else stack.enter_context(log.open("ab"))
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            env=os.environ | {name: str(number) for name, number in numbers.items()},
            close_fds=False,
        )


def _wait(children: list[subprocess.Popen]) -> End:
    """Waits until every process has ended well, or one has not: that one's end."""
    ranks = {child.pid: rank for rank, child in enumerate(children)}
    while ranks:
        ended = [os.wait()]
        while len(ended) < len(ranks) and (another := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(another)
        ends = [End(ranks.pop(child), os.waitstatus_to_exitcode(how)) for child, how in ended]
        failed = [end for end in ends if end.exit_code]
        if failed:
            # Of two that are found dead, the one that was killed: the other fails for want of it.
            return min(failed, key=lambda end: end.exit_code > 0)
    return End(rank=0, exit_code=0)


def main() -> int:
    """`supervisor.py [--processes N] [--log LOG] [--report FILE] GRACE_S COMMAND...`.

    Returns the exit code of the process that failed, once all are gone. FILE gets a line of JSON
    with its rank.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=0)  # 0: one, without a rank
    parser.add_argument("--log", type=Path)  # of the first process; default: our own output
    parser.add_argument("--report", type=Path)
    parser.add_argument("grace_s", type=float)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    mark = os.environ[MARK]
    # Only the leash decides, and it must outlive what it holds.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _disregard)
    children = _start(chosen.command, chosen.processes, chosen.log)

    def wait_for_release() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock a daemon thread would hold at exit
            continue
        end_marked(mark, chosen.grace_s)

    threading.Thread(target=wait_for_release, daemon=True).start()
    end = _wait(children)
    if chosen.report:
        with chosen.report.open("a") as file:
            file.write(json.dumps(end._asdict()) + "\n")
    end_marked(mark, chosen.grace_s)
    return end.exit_code if end.exit_code >= 0 else 128 - end.exit_code


if __name__ == "__main__":
    sys.exit(main())
