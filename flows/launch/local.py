"""Launches on this machine, on a leash, so that no process outlives its launcher.

Knows how to start, follow and end processes; not what they compute.
"""

import contextlib
import os
import subprocess
import time
import uuid
from pathlib import Path
from threading import Event

from flows.launch import Cancelled, Command, OnLine, StageCrashed, leash
from flows.launch.journal import JournalReader
from videoldm_core.errors import UserError
from videoldm_core.files import disk_error
from videoldm_core.interpreter import python_command, python_environment
from videoldm_core.machine import usable_cores

POLL_S = 0.2
TAIL_LINES = 12


class LocalLauncher:
    """Local processes; several through torchrun, on a port of its own, so that none collide."""

    def __init__(self, *, grace_s: float = 5.0) -> None:
        self.grace_s = grace_s  # between asking a process to end and killing it

    def launch(self, command: Command, *, on_line: OnLine, cancelled: Event) -> None:
        """See `Launcher.launch`."""
        mark = uuid.uuid4().hex
        try:
            command.log.parent.mkdir(parents=True, exist_ok=True)
            log = command.log.open("ab")
        except OSError as error:
            raise disk_error(command.log, error) from error
        with log:
            log_start = log.tell()
            held = subprocess.Popen(
                [*python_command(), leash.__file__, str(self.grace_s), *command_line(command)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **environment(command.processes),
                    **os.environ,
                    **python_environment(),
                    leash.MARK: mark,
                },
                start_new_session=True,
            )
            try:
                exit_code = _follow(
                    held, JournalReader(command.journal), on_line=on_line, cancelled=cancelled
                )
            finally:
                _let_go(held, mark, self.grace_s)
        if exit_code != 0:
            raise _failure(command, exit_code, _text_from(command.log, log_start))


def command_line(command: Command) -> list[str]:
    """The words that start `command` on this machine."""
    module = ["-m", command.module, str(command.argument)]
    if command.processes == 0:
        return [*python_command(), *module]
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(command.processes),
    ]
    return [*python_command(), *torchrun, *module]


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
    leash.end_marked(mark, grace_s if held.poll() is None else 0)
    held.wait()


def _failure(command: Command, exit_code: int, log: str) -> Exception:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    sentences = [line.partition("error: ")[2] for line in lines if _says_error(line)]
    if sentences:  # torchrun answers 1 for a worker's 2, so the exit code says nothing
        return UserError(sentences[-1])
    return StageCrashed(command, exit_code, "\n".join(lines[-TAIL_LINES:]))


def _says_error(line: str) -> bool:
    """Whether a command wrote `line` for the user; torchrun may put "[rank0]:" before it."""
    before, error, after = line.partition("error: ")
    return bool(error and after) and (
        not before or before.strip().startswith("[") and before.strip().endswith("]:")
    )


def _text_from(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")
