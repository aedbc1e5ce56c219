"""Starts Python programs of ours so that they import nothing from the current directory.

People run commands inside folders of videos that others filled: a `csv.py` there is not ours.
Imports nothing slow.
"""

import os
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder of our packages


def python_command() -> list[str]:
    """The first words of a command line that runs Python; `-m`, `-c` or a script follow."""
    return [sys.executable, "-P"]


def python_environment() -> dict[str, str]:
    """Environment variables for such a program, to be merged over `os.environ`.

    It finds the same packages as this process, installed or not; so do the programs that it starts
    itself.
    """
    installed = Path(sysconfig.get_paths()["purelib"]).resolve() == ROOT
    own = [] if installed else [str(ROOT)]  # entries come before the standard library
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in named if os.path.isabs(entry) and not _is_current_directory(entry)]
    return {"PYTHONPATH": os.pathsep.join([*own, *kept]), "PYTHONSAFEPATH": "1"}


def _is_current_directory(entry: str) -> bool:
    return os.path.exists(entry) and os.path.samefile(entry, os.curdir)
