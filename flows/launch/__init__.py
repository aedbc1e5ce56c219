"""How a command gets its processes: a Launcher starts it and answers when it has ended well.

Local processes are in local.py; other machines (Slurm, Kubernetes) are other launchers with this
same face.
"""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from videoldm_core.records import Record

JournalLine = dict[str, Any]
OnLine = Callable[[JournalLine], None]


class Command(Record):
    """One module to run on some processes, with one JSON file as its argument."""

    module: str  # run as `python -m module argument`
    argument: Path
    processes: int  # 0 runs the module alone, without a process group for collectives
    log: Path  # stdout and stderr of every process, appended
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
    """A launched command died without a sentence for the user."""

    def __init__(self, command: Command, exit_code: int, last_lines: str) -> None:
        self.log = command.log
        how = f"ended with exit code {exit_code}"
        if exit_code > 128:
            how = f"was ended by signal {exit_code - 128}"
        said = f"the last lines are:\n{last_lines}" if last_lines else "it wrote nothing"
        super().__init__(f"{command.module} {how}; its log is {command.log}, {said}")
