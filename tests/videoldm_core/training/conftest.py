"""Players trained on two real processes, and the same program in this one."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

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
def two_processes() -> Callable[..., None]:
    """two_processes(weights, {...}, ...): `run` of players_program.py with each of these, in one
    start of two processes.
    """

    def start(weights: Path, *requests: dict[str, Any]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            + [str(PROGRAM), str(weights), *map(json.dumps, requests)],
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
                "PYTHONPATH": str(PROGRAM.parents[3]),
            },
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return start


@pytest.fixture(scope="module")
def deterministic():
    """Deterministic algorithms, as the program has them."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
