"""Commands of a few lines, launched for real."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.launch import Command
from flows.launch.local import LocalLauncher

PATIENCE_S = 600  # of a machine that others keep busy


def command_running(
    folder: Path, source: str, *, processes: int = 0, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """A command whose module is `source`, importable by the launched process."""
    modules = folder / "modules"
    modules.mkdir(exist_ok=True)
    (modules / "fake_command.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    return Command(
        module="fake_command",
        argument=folder / "job.json",
        processes=processes,
        log=folder / "log.txt",
        journal=folder / "journal.jsonl",
    )


def launch(
    command: Command, lines: list | None = None, cancelled: threading.Event | None = None
) -> None:
    on_line = (lambda line: None) if lines is None else lines.append
    LocalLauncher(grace_s=0.5).launch(
        command, on_line=on_line, cancelled=cancelled or threading.Event()
    )


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
