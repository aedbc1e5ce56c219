"""The frame of every command that a launcher starts: errors of a user become one sentence.

The sentence goes to stderr and, where the launcher names a file for it, there too: a log holds
what libraries and file names put into it, and cannot be trusted to say which line is ours.
"""

import json
import os
import sys
from collections.abc import Callable

from videoldm_core.errors import UserError

# Environment variables that a launcher sets.
REPORT = "VIDEOLDM_REPORT"  # a file that takes a line of JSON per sentence
RENDEZVOUS = "VIDEOLDM_RENDEZVOUS"  # where the processes of a group meet: torch's init_method


def run_command(work: Callable[[], None]) -> int:
    """Runs `work` and answers the exit code of the command: 2 after a user's error, else 0."""
    try:
        work()
    except UserError as error:
        report(error)
        return 2
    return 0


def report(error: UserError) -> None:
    """Writes the sentence of an error for the user and for the launcher.

    Before anything else is cleared up: processes that wait for this one then fail for want of it,
    and the launcher takes the first sentence.
    """
    sys.stderr.write(f"error: {error}\n")
    sys.stderr.flush()
    path = os.environ.get(REPORT)
    if path:
        with open(path, "a") as file:
            file.write(json.dumps({"sentence": str(error)}) + "\n")


def is_one_of_several() -> bool:
    """Whether a launcher started this process as part of a group, maybe the only one of it.

    Raises:
        UserError: by a launcher that says how many there are, but not where they meet.
    """
    if RENDEZVOUS in os.environ:
        return True
    if "WORLD_SIZE" in os.environ:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, but {RENDEZVOUS} is not set; the "
            "processes would not find each other: start stages with `videoldm train`, which takes "
            "processes=N, or unset WORLD_SIZE to train in one process."
        )
    return False
