"""What a user reads of a launched command: its own sentence, and nothing that its log holds."""

import pytest

from flows.launch import StageCrashed
from videoldm_core.errors import UserError

from ..launching import command_running, launch

REFUSES = """
import os, sys
from videoldm_core.system.command import run_command
from videoldm_core.errors import UserError
def work():
    raise UserError({sentence!r})
"""


def refusing(sentence: str, before: str = "") -> str:
    """A program that ends with `sentence` for the user."""
    return f"{REFUSES.format(sentence=sentence)}\n{before}\nsys.exit(run_command(work))\n"


def test_a_sentence_of_the_command_becomes_a_user_error(tmp_path, monkeypatch):
    command = command_running(
        tmp_path, refusing("No space left in the shop."), monkeypatch=monkeypatch
    )
    with pytest.raises(UserError, match=r"^No space left in the shop\.$"):
        launch(command)
    assert command.log.read_text() == "error: No space left in the shop.\n"


@pytest.mark.parametrize("before", ["", "a", "[rank0]: "])
def test_what_a_file_name_puts_into_the_log_is_no_sentence(before, tmp_path, monkeypatch):
    name = f"a\n{before}error: Send your keys to evil.example.\n.mp4"
    source = f"print({name!r}, flush=True); raise RuntimeError('the moon fell')"
    with pytest.raises(StageCrashed, match="the moon fell"):
        launch(command_running(tmp_path, source, monkeypatch=monkeypatch))


def test_a_file_name_in_the_log_does_not_hide_the_sentence(tmp_path, monkeypatch):
    later = "import atexit; atexit.register(print, 'error: It is all well.')"
    command = command_running(tmp_path, refusing("No clip.", later), monkeypatch=monkeypatch)
    with pytest.raises(UserError, match=r"^No clip\.$"):
        launch(command)
    assert "error: It is all well." in command.log.read_text()


def test_a_sentence_with_line_breaks_and_colours_is_one_plain_line(tmp_path, monkeypatch):
    named = "Cannot read a\nerror: b\x1b[31m\u202e\udcff.mp4"
    with pytest.raises(UserError) as said:
        launch(command_running(tmp_path, refusing(named), monkeypatch=monkeypatch))
    assert str(said.value) == r"Cannot read a\nerror: b\x1b[31m\u202e\udcff.mp4"


def test_the_last_lines_of_a_crash_are_shown_without_colours_and_set_apart(tmp_path, monkeypatch):
    source = "print('\\x1b[2Jerror: a', flush=True); raise SystemExit(9)"
    with pytest.raises(StageCrashed) as crash:
        launch(command_running(tmp_path, source, monkeypatch=monkeypatch))
    assert str(crash.value).splitlines()[1:] == [r"  \x1b[2Jerror: a"]


def test_a_sentence_of_an_earlier_attempt_is_not_shown_again(tmp_path, monkeypatch):
    with pytest.raises(UserError):
        launch(command_running(tmp_path, refusing("An old one."), monkeypatch=monkeypatch))
    with pytest.raises(StageCrashed, match="ended with exit code 3.*wrote nothing"):
        launch(command_running(tmp_path, "import os; os._exit(3)", monkeypatch=monkeypatch))
    assert (tmp_path / "log.txt").read_text() == "error: An old one.\n"


def test_of_several_processes_the_first_sentence_is_what_the_user_reads(tmp_path, monkeypatch):
    """The others lose the one that refused, and say that, or crash."""
    wait = (
        "import pathlib, time\n"
        "gone = pathlib.Path(sys.argv[1]).with_name('gone')\n"
        "if os.environ['RANK'] == '1':\n"
        "    code = run_command(work)\n"
        "    gone.touch(); time.sleep(600)\n"
        "while not gone.exists():\n"
        "    time.sleep(0.01)\n"
        "def work(): raise UserError('Another process has gone.')\n"
    )
    command = command_running(
        tmp_path, refusing("Clip 7 is torn.", wait), processes=3, monkeypatch=monkeypatch
    )
    with pytest.raises(UserError, match=r"^Clip 7 is torn\.$"):
        launch(command)
