"""Commands that are run inside a folder of somebody else's run none of the code that lies there."""

import os
import subprocess
import sys
import threading
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from flows.launch import Command
from flows.launch.local import LocalLauncher

ROOT = Path(__file__).parents[2]
OURS = {"flows", "preprocessing", "videoldm_core"}
RECORD = "import sys; print(__name__, sys.orig_argv, file=open({ran!r}, 'a'))\n"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder in which every module that there is lies again; each notes that it was run."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    source = RECORD.format(ran=str(tmp_path / "ran"))
    installed = {name.partition("/")[0] for name in packages_distributions()}
    names = {*sys.stdlib_module_names, *installed, "sitecustomize", "usercustomize"}
    for name in names - OURS:
        (folder / f"{name}.py").write_text(source)
    for name in OURS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(source)
    return folder


def what_ran(hostile: Path) -> str:
    ran = hostile.with_name("ran")
    return ran.read_text() if ran.exists() else ""


def videoldm(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The installed command, run in `folder`, with a Prefect server of its own."""
    named = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT")}
    return subprocess.run(
        [str(Path(sys.executable).with_name("videoldm")), *words],
        cwd=folder,
        env=named | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(3600)  # a server, a step and decoding on a machine that others keep busy
def test_admitting_videos_runs_no_code_that_lies_beside_them(hostile, tmp_path, counting_video):
    counting_video(folder=hostile)  # too short for any stage, which is said after it was decoded
    result = videoldm(hostile, "admit", "tiny", "videos=.", f"out={tmp_path / 'out'}")
    assert (tmp_path / "out" / "admission.html").is_file(), result.stderr
    assert (tmp_path / "out" / "prefect" / "prefect.db").is_file(), "Prefect's server ran too"
    assert what_ran(hostile) == ""


@pytest.mark.parametrize("processes", [0, 2])
def test_a_launched_module_imports_nothing_of_the_current_directory(
    processes, hostile, tmp_path, monkeypatch
):
    (tmp_path / "job.json").write_text("{}")
    command = Command(
        module="json.tool",
        argument=tmp_path / "job.json",
        processes=processes,
        log=tmp_path / "log.txt",
        journal=tmp_path / "journal.jsonl",
    )
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}:")  # as shells leave it
    LocalLauncher().launch(command, on_line=print, cancelled=threading.Event())
    assert what_ran(hostile) == ""
