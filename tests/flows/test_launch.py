"""Launching with real processes: exit codes become errors, and no process survives its launch."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.launch import Cancelled, Command, StageCrashed
from flows.launch.journal import JournalReader
from flows.launch.leash import marked_processes
from flows.launch.local import LocalLauncher, command_line, environment
from videoldm_core.errors import UserError


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


def wait_until(condition, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


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


def test_a_sentence_of_the_command_becomes_a_user_error(tmp_path, monkeypatch):
    source = (
        "import sys\nprint('loading')\n"
        "print('error: No space left in the shop.', file=sys.stderr)\nsys.exit(2)"
    )
    with pytest.raises(UserError, match=r"^No space left in the shop\.$"):
        launch(command_running(tmp_path, source, monkeypatch=monkeypatch))


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


def test_a_sentence_of_an_earlier_attempt_is_not_shown_again(tmp_path, monkeypatch):
    (tmp_path / "log.txt").write_text("error: an old one\n")
    with pytest.raises(StageCrashed):
        launch(command_running(tmp_path, "import os; os._exit(3)", monkeypatch=monkeypatch))
    assert (tmp_path / "log.txt").read_text().startswith("error: an old one")


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
    thread.join(timeout=20)
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
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", f"{root}:{tmp_path / 'modules'}")
    launcher = subprocess.Popen([sys.executable, "-c", source, command.model_dump_json()])
    wait_until((tmp_path / "mark").exists)
    mark = (tmp_path / "mark").read_text()
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    wait_until(lambda: marked_processes(mark) == [])
    assert marked_processes(mark) == []


def test_torchrun_runs_every_process_and_keeps_the_sentence_of_a_failing_one(tmp_path, monkeypatch):
    source = (
        "import os, pathlib, sys\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "threads = os.environ['OMP_NUM_THREADS']\n"
        "here.with_name('rank' + os.environ['RANK']).write_text(threads)\n"
        "print('error: Both of us agree.', file=sys.stderr)\n"
        "sys.exit(2)\n"
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(UserError, match="Both of us agree."):
        launch(command_running(tmp_path, source, processes=2, monkeypatch=monkeypatch))
    assert (
        (tmp_path / "rank0").read_text()
        == (tmp_path / "rank1").read_text()
        == environment(2)["OMP_NUM_THREADS"]
    )


def test_a_read_only_log_folder_is_one_sentence(tmp_path, monkeypatch):
    command = command_running(tmp_path, "", monkeypatch=monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*free space"):
        launch(command.model_copy(update={"log": tmp_path / "file" / "log.txt"}))


def test_the_command_line_starts_one_torchrun_with_its_own_port():
    command = Command(
        module="m", argument=Path("job.json"), processes=2, log=Path("l"), journal=Path("j")
    )
    words = command_line(command)
    assert words[2:7] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert words[-3:] == ["-m", "m", "job.json"]


def test_a_torn_journal_line_is_left_until_it_is_whole(tmp_path):
    journal = tmp_path / "journal.jsonl"
    reader = JournalReader(journal)
    assert list(reader.new_lines()) == []
    journal.write_text(json.dumps({"step": 1}) + "\n" + '{"step"')
    assert list(reader.new_lines()) == [{"step": 1}]
    with journal.open("a") as file:
        file.write(": 2}\n")
    assert list(reader.new_lines()) == [{"step": 2}]
