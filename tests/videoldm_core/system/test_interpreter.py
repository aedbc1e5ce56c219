"""Programs that we start import our packages, and nothing of the directory they are started in."""

import os
import subprocess
from pathlib import Path

import pytest

from videoldm_core.system.interpreter import ROOT, python_command, python_environment


def imported_from(folder: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a program started in `folder` imports `module` from."""
    monkeypatch.chdir(folder)
    answer = subprocess.run(
        [*python_command(), "-c", f"import {module}; print({module}.__file__)"],
        env=os.environ | python_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(answer.stdout.strip())


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with a `csv.py` and a `sitecustomize.py` of somebody else's."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("csv", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return folder


@pytest.mark.parametrize("path", [None, "", ":", ".", "{root}:", "videos/..:{folder}:../videos"])
def test_no_module_of_the_current_directory_is_imported(path, hostile, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path.format(root=ROOT, folder=hostile))
    assert imported_from(hostile, "csv", monkeypatch).parent != hostile
    assert not (hostile.parent / "ran").exists()


def test_our_packages_and_the_users_own_folders_are_found(tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert imported_from(tmp_path.parent, "own_module", monkeypatch).parent == tmp_path
    assert imported_from(tmp_path.parent, "preprocessing", monkeypatch).parents[1] == ROOT


def test_a_folder_of_the_users_that_is_gone_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "gone"))
    assert imported_from(tmp_path, "csv", monkeypatch).name == "csv.py"


def test_a_program_started_by_one_of_ours_is_as_careful(hostile, monkeypatch):
    monkeypatch.chdir(hostile)
    source = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import csv'])"
    environment = os.environ | python_environment()
    subprocess.run([*python_command(), "-c", source], env=environment, check=True)
    assert not (hostile.parent / "ran").exists()
