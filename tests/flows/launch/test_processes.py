"""Several processes of one command: how they find each other, and what one does to the others."""

import json
import os
import signal
import tempfile
import threading
from pathlib import Path

import pytest

from flows.launch import Cancelled, StageCrashed
from flows.launch.local import environment
from flows.launch.supervisor import marked_processes

from ..launching import command_running, launch, wait_until

NOTES = """
import json, os, pathlib, sys, time
here = pathlib.Path(sys.argv[1]).parent
rank = os.environ.get("RANK", "none")
part = here / f"part{rank}"
part.write_text(json.dumps(dict(os.environ)))
part.rename(here / f"rank{rank}")
"""
LATER = """
while not (here / "rank1").exists() or not (here / "rank0").exists():
    time.sleep(0.01)
"""
GROUP = """
from torch import distributed, ones
distributed.init_process_group(
    "gloo",
    init_method=os.environ["VIDEOLDM_RENDEZVOUS"],
    rank=int(os.environ["RANK"]),
    world_size=int(os.environ["WORLD_SIZE"]),
)
total = ones(1)
distributed.all_reduce(total)
(here / f"total{rank}").write_text(str(int(total)))
distributed.destroy_process_group()
"""
ELSEWHERE = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def environment_of(folder: Path, rank: int | str) -> dict[str, str]:
    return json.loads((folder / f"rank{rank}").read_text())


def test_every_process_has_its_number_and_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch(command_running(tmp_path, NOTES, processes=2, monkeypatch=monkeypatch))
    for rank in range(2):
        found = environment_of(tmp_path, rank)
        assert (found["LOCAL_RANK"], found["WORLD_SIZE"]) == (str(rank), "2")
        assert found["OMP_NUM_THREADS"] == environment(2)["OMP_NUM_THREADS"]


@pytest.mark.parametrize("processes", [0, 1])
def test_what_another_launcher_set_for_us_is_not_for_what_we_launch(
    processes, tmp_path, monkeypatch
):
    for name, value in ELSEWHERE.items():
        monkeypatch.setenv(name, value)
    launch(command_running(tmp_path, NOTES, processes=processes, monkeypatch=monkeypatch))
    found = environment_of(tmp_path, "0" if processes else "none")
    assert not found.keys() & {"MASTER_ADDR", "MASTER_PORT"}
    assert found.get("WORLD_SIZE") == ("1" if processes else None)
    assert ("VIDEOLDM_RENDEZVOUS" in found) == bool(processes)


def test_two_launches_at_a_time_meet_each_its_own_and_leave_no_file(tmp_path, monkeypatch):
    """In the folders of the commands, and in the folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folders = [tmp_path / name for name in ("tmp", "a", "b")]
    for folder in folders:
        folder.mkdir()
    commands = [
        command_running(folder, NOTES + GROUP, processes=2, monkeypatch=monkeypatch)
        for folder in folders[1:]
    ]
    threads = [threading.Thread(target=launch, args=[command]) for command in commands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = {"log.txt", "log.rank1.txt", "modules", "rank0", "rank1", "total0", "total1"}
    for folder in folders[1:]:
        assert {path.name for path in folder.iterdir()} == made
        assert [(folder / f"total{rank}").read_text() for rank in range(2)] == ["2", "2"]
    assert list(folders[0].iterdir()) == []


@pytest.mark.parametrize(
    ("death", "said"),
    [
        ("os.kill(os.getpid(), 9)", "process 1 of 2, was ended by signal 9"),
        ("raise SystemExit(7)", "process 1 of 2, ended with exit code 7"),
    ],
)
def test_a_process_that_dies_ends_the_others_and_is_named_with_its_last_lines(
    death, said, tmp_path, monkeypatch
):
    source = NOTES + LATER + f"print('this is', rank, flush=True)\nif rank == '1':\n    {death}\n"
    source += "(here / 'mark').write_text(os.environ['VIDEOLDM_LAUNCH']); time.sleep(3600)\n"
    with pytest.raises(StageCrashed, match=said) as crash:
        launch(command_running(tmp_path, source, processes=2, monkeypatch=monkeypatch))
    assert str(crash.value).splitlines()[1:] == ["  this is 1"]
    assert str(tmp_path / "log.rank1.txt") in str(crash.value)
    assert marked_processes(environment_of(tmp_path, 0)["VIDEOLDM_LAUNCH"]) == []


def test_cancelling_ends_every_process(tmp_path, monkeypatch):
    cancelled, errors = threading.Event(), []
    source = NOTES + "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    source += "(here / f'deaf{rank}').touch(); time.sleep(3600)\n"
    command = command_running(tmp_path, source, processes=2, monkeypatch=monkeypatch)

    def run() -> None:
        try:
            launch(command, cancelled=cancelled)
        except Cancelled as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: all((tmp_path / f"deaf{rank}").exists() for rank in range(2)))
    cancelled.set()
    thread.join()
    assert len(errors) == 1
    assert marked_processes(environment_of(tmp_path, 0)["VIDEOLDM_LAUNCH"]) == []


def test_killing_the_leash_itself_leaves_no_process(tmp_path, monkeypatch):
    source = NOTES + LATER + "time.sleep(3600)\n"
    command = command_running(tmp_path, source, processes=2, monkeypatch=monkeypatch)
    errors = []

    def run() -> None:
        try:
            launch(command)
        except StageCrashed as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: all((tmp_path / f"rank{rank}").exists() for rank in range(2)))
    mark = environment_of(tmp_path, 1)["VIDEOLDM_LAUNCH"]
    leash = next(p for p in marked_processes(mark) if b"supervisor.py" in command_words(p))
    os.kill(leash, signal.SIGKILL)
    thread.join()
    assert "was ended by signal 9" in errors[0]
    assert marked_processes(mark) == []


def command_words(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()
