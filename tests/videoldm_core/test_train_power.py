"""What a loss of power leaves of training."""

import sys

from videoldm_core.train import main

from .conftest import STAGE


def test_no_checkpoint_and_no_stage_is_beyond_its_journal_after_a_loss_of_power(
    job_of, monkeypatch, disk
):
    job, file = job_of("power", stage=STAGE.model_copy(update={"steps": 8, "cooldown": 0}))
    monkeypatch.setattr(sys, "argv", ["train", str(file)])
    assert main() == 0
    journal = ("sync", job.out / "journal.jsonl")
    published = [i for i, (kind, _) in enumerate(disk.events) if kind == "name"]
    names = [disk.events[i][1].name for i in published]
    assert names == ["step_00000004", "step_00000008", "weights", "stage.json"]
    assert disk.unsafe() == []
    first, second, _, last = published
    for start, end in ((0, first), (first, second), (second, last)):
        assert journal in disk.events[start:end], disk.events[end]
