"""The frame of the commands: exit codes, and a sentence that reaches the user and the launcher."""

import json
import sys
from pathlib import Path

import pytest

from videoldm_core import evaluate, generate, train
from videoldm_core.errors import UserError
from videoldm_core.system.command import RENDEZVOUS, REPORT, is_one_of_several, run_command


def refuse() -> None:
    raise UserError("No clip is\nlong enough.")


def test_a_command_that_ends_well_says_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(REPORT, str(tmp_path / "report"))
    assert run_command(lambda: None) == 0
    assert not (tmp_path / "report").exists()
    assert capsys.readouterr().err == ""


def test_a_users_error_is_one_line_on_stderr_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.delenv(REPORT, raising=False)
    assert run_command(refuse) == 2
    assert capsys.readouterr().err == "error: No clip is\\nlong enough.\n"


def test_sentences_are_added_to_the_file_that_the_launcher_names(monkeypatch, tmp_path):
    monkeypatch.setenv(REPORT, str(tmp_path / "report"))
    assert run_command(refuse) == run_command(refuse) == 2
    lines = (tmp_path / "report").read_text().splitlines()
    assert [json.loads(line) for line in lines] == 2 * [{"sentence": r"No clip is\nlong enough."}]


def test_what_is_no_users_error_is_left_to_the_traceback():
    with pytest.raises(IndexError):
        run_command(lambda: [][0])


@pytest.mark.parametrize("module", [evaluate, generate, train])
def test_every_command_reports_to_its_launcher(module, monkeypatch, tmp_path):
    monkeypatch.setenv(REPORT, str(tmp_path / "report"))
    monkeypatch.setattr(sys, "argv", ["command", str(tmp_path / "gone.json")])
    assert module.main() == 2
    (line,) = (tmp_path / "report").read_text().splitlines()
    assert "gone.json" in json.loads(line)["sentence"]


def test_processes_that_cannot_find_each_other_are_refused(monkeypatch):
    """As another launcher would start them, each training the whole stage."""
    for name in (RENDEZVOUS, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not is_one_of_several()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=f"WORLD_SIZE is '2', but {RENDEZVOUS} is not set"):
        is_one_of_several()
    monkeypatch.setenv(RENDEZVOUS, Path("/meeting").as_uri())
    assert is_one_of_several()
