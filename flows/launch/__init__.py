"""How a command gets its processes: a Launcher starts it and answers when it has ended well.

Local processes are in local.py; other machines (Slurm, Kubernetes) are other launchers with this
same face.
"""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from flows.launch.supervisor import End, log_of_rank
from videoldm_core.errors import one_line, without_secrets
from videoldm_core.records import Record

JournalLine = dict[str, Any]
OnLine = Callable[[JournalLine], None]


class Command(Record):
    """One module to run on some processes, with one JSON file as its argument."""

    module: str  # run as `python -m module argument`
    argument: Path
    processes: int  # 0 runs the module alone, without a process group for collectives
    log: Path  # stdout and stderr of the first process, appended; others: "log.rank1.txt" beside it
    journal: Path  # followed while it runs; need not exist


class Launcher(Protocol):
    """Starts commands; an implementation owns every process it starts until none is left."""

    def launch(self, command: Command, *, on_line: OnLine, cancelled: Event) -> None:
        """Runs `command` to its end, calling `on_line` for every line of its journal.

        Raises:
            UserError: the command ended with a sentence for the user.
            StageCrashed: it ended in any other way than well.
            Cancelled: `cancelled` was set; no process of the command is left.
        """
        ...


class Cancelled(Exception):
    """The run was asked to stop; what was launched has been ended."""


class StageCrashed(Exception):
    """A launched command died without a sentence for the user.

    Args:
        end: of the process that failed first.
        last_lines: that it wrote.
    """

    def __init__(self, command: Command, end: End, last_lines: str) -> None:
        self.log = log_of_rank(command.log, end.rank)
        whose = f", process {end.rank} of {command.processes}," if command.processes > 1 else ""
        how = f"ended with exit code {end.exit_code}"
        if end.exit_code < 0:
            how = f"was ended by signal {-end.exit_code}"
        shown = "\n".join(
            f"  {one_line(without_secrets(line))}" for line in last_lines.splitlines()
        )
        said = f"the last lines are:\n{shown}" if shown else "it wrote nothing"
        super().__init__(f"{command.module}{whose} {how}; its log is {str(self.log)!r}, {said}")
