"""The journal: whole lines, whatever happened before."""

import json
import time
from pathlib import Path

import pytest

from videoldm_core.errors import UserError
from videoldm_core.system.journal import Journal


def test_every_entry_is_a_line_with_its_time(tmp_path: Path):
    journal = Journal(tmp_path / "stage" / "journal.jsonl")
    before = time.time()
    journal.write(total_steps=5)
    journal.write(step=1, metrics={"loss": 0.5})
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert [sorted(line) for line in lines] == [
        ["time", "total_steps"],
        ["metrics", "step", "time"],
    ]
    assert lines[1]["metrics"] == {"loss": 0.5}
    assert before - 1 < lines[0]["time"] < time.time() + 1


def test_a_line_is_on_disk_when_write_returns(tmp_path: Path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(step=1)
    assert journal.path.read_text().endswith("}\n")


def test_synced_lines_and_the_journals_name_survive_a_loss_of_power(tmp_path: Path, disk):
    journal = Journal(tmp_path / "stage" / "journal.jsonl")
    journal.write(step=1)
    journal.sync()
    assert disk.synced(journal.path)
    assert disk.synced(tmp_path / "stage")
    assert disk.synced(tmp_path)


def test_a_journal_that_cannot_reach_the_disk_is_one_sentence(tmp_path: Path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(step=1)

    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match=r"Cannot write .*journal.jsonl': Input/output error"):
        journal.sync()


def test_a_later_run_adds_to_what_is_there(tmp_path: Path):
    Journal(tmp_path / "j.jsonl").write(step=1)
    Journal(tmp_path / "j.jsonl").write(step=2)
    steps = [json.loads(line)["step"] for line in (tmp_path / "j.jsonl").open()]
    assert steps == [1, 2]


def test_the_half_line_of_a_crash_is_closed_so_that_the_next_is_whole(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "met')
    Journal(path).write(step=3)
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"step": 1}', '{"step": 2, "met']
    assert json.loads(lines[2])["step"] == 3


@pytest.mark.parametrize("content", ["", '{"step": 1}\n'])
def test_a_whole_journal_is_left_as_it_is(tmp_path: Path, content: str):
    path = tmp_path / "j.jsonl"
    path.write_text(content)
    Journal(path)
    assert path.read_text() == content


def test_a_folder_that_cannot_be_made_is_reported_in_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*choose another output folder"):
        Journal(tmp_path / "file" / "j.jsonl")


def test_a_path_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path):
    journal = Journal(tmp_path / "j.jsonl")
    (tmp_path / "j.jsonl").mkdir()
    with pytest.raises(UserError, match=r"Cannot write .*j\.jsonl"):
        journal.write(step=1)
