"""Launching with real processes: exit codes become errors, and no process survives its launch."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.launch import Cancelled, StageCrashed
from flows.launch.supervisor import marked_processes
from videoldm_core.errors import UserError
from videoldm_core.system.journal_reader import JournalReader

from ..launching import command_running, launch, wait_until

STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) < 3:
    subprocess.Popen([sys.executable, __file__, sys.argv[1], "child"], start_new_session=True)
else:
    pathlib.Path(sys.argv[1]).with_name("mark").write_text(os.environ["VIDEOLDM_LAUNCH"])
time.sleep(600)
"""


def test_every_journal_line_reaches_the_caller_while_and_after_the_command_runs(
    tmp_path, monkeypatch
):
    source = (
        "import json, pathlib, sys, time\n"
        "file = pathlib.Path(sys.argv[1]).with_name('journal.jsonl').open('a')\n"
        "for step in range(5):\n"
        "    file.write(json.dumps({'step': step}) + '\\n'); file.flush(); time.sleep(0.1)\n"
    )
    lines: list = []
    launch(command_running(tmp_path, source, monkeypatch=monkeypatch), lines)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]


def test_a_crash_names_the_log_and_shows_its_last_lines(tmp_path, monkeypatch):
    command = command_running(
        tmp_path, "raise RuntimeError('the moon fell')", monkeypatch=monkeypatch
    )
    with pytest.raises(StageCrashed, match=r"log\.txt(.|\n)*the moon fell") as crash:
        launch(command)
    assert "ended with exit code 1" in str(crash.value)


def test_a_killed_command_says_so(tmp_path, monkeypatch):
    source = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(StageCrashed, match="was ended by signal 9; its log is .* wrote nothing"):
        launch(command_running(tmp_path, source, monkeypatch=monkeypatch))


def test_cancelling_ends_processes_in_other_sessions_that_ignore_sigterm(tmp_path, monkeypatch):
    cancelled = threading.Event()
    command = command_running(tmp_path, STUBBORN, monkeypatch=monkeypatch)
    errors: list = []

    def run() -> None:
        try:
            launch(command, cancelled=cancelled)
        except Cancelled as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until((tmp_path / "mark").exists)
    mark = (tmp_path / "mark").read_text()
    assert (
        len(marked_processes(mark)) == 3
    )  # the leash, the command and its child in another session
    cancelled.set()
    thread.join()
    assert len(errors) == 1
    assert marked_processes(mark) == []


def test_killing_the_launcher_itself_leaves_no_orphan(tmp_path, monkeypatch):
    command = command_running(tmp_path, STUBBORN, monkeypatch=monkeypatch)
    source = (
        "import sys, threading\nfrom flows.launch import Command\n"
        "from flows.launch.local import LocalLauncher\n"
        "command = Command.model_validate_json(sys.argv[1])\n"
        "LocalLauncher(grace_s=0.5).launch(command, on_line=print, cancelled=threading.Event())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    root = str(Path(__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", f"{root}:{tmp_path / 'modules'}")
    launcher = subprocess.Popen([sys.executable, "-c", source, command.model_dump_json()])
    wait_until((tmp_path / "mark").exists)
    mark = (tmp_path / "mark").read_text()
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    wait_until(lambda: marked_processes(mark) == [])
    assert marked_processes(mark) == []


@pytest.mark.parametrize("processes", [0, 2])
def test_what_is_launched_is_given_no_key_or_password_of_prefect(processes, tmp_path, monkeypatch):
    source = (
        "import json, os, pathlib, sys\n"
        "file = pathlib.Path(sys.argv[1]).with_name('given' + os.environ.get('RANK', '0'))\n"
        "file.write_text(json.dumps(dict(os.environ)))\n"
    )
    for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "a-secret")
    launch(command_running(tmp_path, source, processes=processes, monkeypatch=monkeypatch))
    given = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("given*"))]
    assert len(given) == max(1, processes)
    for environment in given:
        assert "a-secret" not in environment.values()
        assert "PATH" in environment


def test_a_read_only_log_folder_is_one_sentence(tmp_path, monkeypatch):
    command = command_running(tmp_path, "", monkeypatch=monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*free space"):
        launch(command.model_copy(update={"log": tmp_path / "file" / "log.txt"}))


def test_a_torn_journal_line_is_left_until_it_is_whole(tmp_path):
    journal = tmp_path / "journal.jsonl"
    reader = JournalReader(journal)
    assert list(reader.new_lines()) == []
    journal.write_text(json.dumps({"step": 1}) + "\n" + '{"step"')
    assert list(reader.new_lines()) == [{"step": 1}]
    with journal.open("a") as file:
        file.write(": 2}\n")
    assert list(reader.new_lines()) == [{"step": 2}]
