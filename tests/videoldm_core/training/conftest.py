"""Players trained on two real processes, and the same program in this one."""

import importlib.util
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flows.launch import Command
from flows.launch.local import LocalLauncher

PROGRAM = Path(__file__).with_name("players_program.py")


@pytest.fixture(scope="session")
def program() -> ModuleType:
    """players_program.py as a module."""
    spec = importlib.util.spec_from_file_location("players_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """two_processes(weights, {...}, ...): `run` of players_program.py with each of these, in one
    start of two processes.
    """

    def start(weights: Path, *requests: dict[str, Any]) -> None:
        folder = tmp_path_factory.mktemp("two processes")
        argument = folder / "requests.json"
        argument.write_text(json.dumps([str(weights), *requests]))
        command = Command(
            module=PROGRAM.stem,
            argument=argument,
            processes=2,
            log=folder / "log.txt",
            journal=folder / "journal.jsonl",
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("DS_ACCELERATOR", "cpu")
            patch.setenv("PYTHONPATH", str(PROGRAM.parent))
            LocalLauncher().launch(command, on_line=print, cancelled=threading.Event())

    return start


@pytest.fixture(scope="module")
def deterministic():
    """Deterministic algorithms, as the program has them."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
