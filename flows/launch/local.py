"""Launches on this machine, on a leash, so that no process outlives its launcher.

Knows how to start, follow and end processes; not what they compute. The processes of one command
find each other over a file that is handed to them and talk over the loopback interface: none of
them can be reached from another machine.
"""

import contextlib
import json
import os
import subprocess
import time
import uuid
from pathlib import Path
from threading import Event

from flows.launch import Cancelled, Command, OnLine, StageCrashed, supervisor
from flows.launch.handed import HandedFile
from videoldm_core.errors import UserError
from videoldm_core.system.command import RENDEZVOUS, REPORT
from videoldm_core.system.files import append_private, disk_error
from videoldm_core.system.interpreter import python_command, python_environment
from videoldm_core.system.journal_reader import JournalReader
from videoldm_core.system.machine import usable_cores

POLL_S = 0.2
TAIL_LINES = 12
# Whatever is set for jobs on several machines, one machine needs no other interface.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
# Set by a launcher that may have started us; what we start is no part of its job.
FOREIGN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    *("MASTER_ADDR", "MASTER_PORT", "NCCL_COMM_ID"),
)


class LocalLauncher:
    """Local processes, several at a time where a command asks for them."""

    def __init__(self, *, grace_s: float = 5.0) -> None:
        self.grace_s = grace_s  # between asking a process to end and killing it

    def launch(self, command: Command, *, on_line: OnLine, cancelled: Event) -> None:
        """See `Launcher.launch`."""
        mark = uuid.uuid4().hex
        logs = _Logs(command)
        with (
            HandedFile("report") as report,
            HandedFile("rendezvous") as rendezvous,
            append_private(command.log) as log,
        ):
            held = subprocess.Popen(
                self._leash(command, report),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(command, report, rendezvous) | {supervisor.MARK: mark},
                pass_fds=[report.number, rendezvous.number],
                start_new_session=True,
            )
            try:
                exit_code = _follow(
                    held, JournalReader(command.journal), on_line=on_line, cancelled=cancelled
                )
            finally:
                _let_go(held, mark, self.grace_s)
            written = report.text()
        if exit_code != 0:
            raise _failure(command, exit_code, written, logs)

    def _leash(self, command: Command, report: HandedFile) -> list[str]:
        """The words that start `command` on its leash."""
        options = ["--processes", str(command.processes), "--log", str(command.log)]
        options += ["--report", report.path, str(self.grace_s)]
        module = [*python_command(), "-m", command.module, str(command.argument)]
        return [*python_command(), supervisor.__file__, *options, *module]


class _Logs:
    """The logs of a command's processes, and where in them this launch begins."""

    def __init__(self, command: Command) -> None:
        self.starts: dict[Path, int] = {}
        try:
            command.log.parent.mkdir(parents=True, exist_ok=True)
            for rank in range(max(1, command.processes)):
                path = supervisor.log_of_rank(command.log, rank)
                with append_private(path) as file:
                    self.starts[path] = file.tell()
        except OSError as error:
            raise disk_error(command.log, error) from error

    def tail(self, log: Path) -> str:
        """The last lines that one process wrote."""
        with log.open("rb") as file:
            file.seek(self.starts[log])
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join([line.strip() for line in lines if line.strip()][-TAIL_LINES:])


def _environment(command: Command, report: HandedFile, rendezvous: HandedFile) -> dict[str, str]:
    """The environment of every process of `command`."""
    own = {
        name: value
        for name, value in os.environ.items()
        # Prefect's keys and passwords: no launched command asks its server.
        if name not in FOREIGN and not name.startswith("PREFECT_")
    }
    group = {RENDEZVOUS: f"file://{rendezvous.path}"} if command.processes else {}
    return {
        **environment(command.processes),
        **own,
        **LOOPBACK,
        **python_environment(),
        **group,
        REPORT: report.path,
    }


def environment(processes: int) -> dict[str, str]:
    """What a launched process gets where the launcher's own environment does not say otherwise."""
    quiet = {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # what a run asks for is fetched before
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    threads = max(1, usable_cores() // max(1, processes))
    cpu_only = {} if has_accelerator() else {"DS_ACCELERATOR": "cpu"}
    # glibc would return every large tensor to the kernel and page it in anew, which takes up to
    # half the time of a CPU step (measured 1.2-1.5x).
    keep_memory = {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
        "MALLOC_TOP_PAD_": str(1 << 28),
    }
    return {**quiet, **cpu_only, **keep_memory, "OMP_NUM_THREADS": str(threads)}


def has_accelerator() -> bool:
    """Whether an NVIDIA device is visible; asked of the driver, as torch takes seconds."""
    return (
        os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")
        and Path("/proc/driver/nvidia/version").exists()
    )


def _follow(
    held: subprocess.Popen, journal: JournalReader, *, on_line: OnLine, cancelled: Event
) -> int:
    while True:
        exit_code = held.poll()
        for line in journal.new_lines():
            on_line(line)
        if exit_code is not None:
            return exit_code
        if cancelled.wait(POLL_S):
            raise Cancelled


def _let_go(held: subprocess.Popen, mark: str, grace_s: float) -> None:
    """Ends whatever is left of the command; the leash does it, and is helped where it does not."""
    with contextlib.suppress(BrokenPipeError):
        if held.stdin:
            held.stdin.close()
    deadline = time.monotonic() + 2 * grace_s + 5
    while held.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    supervisor.end_marked(mark, grace_s if held.poll() is None else 0)
    held.wait()


def _failure(command: Command, exit_code: int, report: str, logs: _Logs) -> Exception:
    """The error that the processes of `command` ended with.

    Args:
        exit_code: of the leash, which counts where it was killed before it could say more.
        report: lines of JSON, from processes a sentence, from the leash which process failed.
    """
    lines = [json.loads(line) for line in report.splitlines()]
    sentences = [line["sentence"] for line in lines if "sentence" in line]
    if sentences:
        return UserError(sentences[0])
    ends = [supervisor.End(**line) for line in lines if "rank" in line]
    end = ends[0] if ends else supervisor.End(rank=0, exit_code=exit_code)
    log = supervisor.log_of_rank(command.log, end.rank)
    return StageCrashed(command, end, logs.tail(log))
