"""The command that trains a stage, as real processes: killed, resumed, repeated, and refusing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import videoldm_core.train
from videoldm_core.data.loader import Batch
from videoldm_core.data.shards import Index
from videoldm_core.evaluate import judge
from videoldm_core.evaluation.image import BeatsLinearDenoiser
from videoldm_core.jobs.job import Job
from videoldm_core.jobs.published import part_paths, read_published
from videoldm_core.objectives.build import build_task
from videoldm_core.system.files import sha256_of_folder
from videoldm_core.system.git import git_commit
from videoldm_core.train import main
from videoldm_core.training.task import Task
from videoldm_core.training.train_module import Player

from .conftest import CHECKPOINT_EVERY, STAGE, STEPS, write_store

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # the same sums in every process


KILLED_AFTER_STEP = 6
KILLED = f"""
import os, signal, sys
from videoldm_core.train import main
from videoldm_core.system.journal import Journal

write = Journal.write

def write_and_die(journal, **line):
    write(journal, **line)
    if line.get("step") == {KILLED_AFTER_STEP}:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.write = write_and_die
sys.exit(main())
"""


def in_a_process(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=False)


def in_this_process(file: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["train", str(file)])
    return main()


def journal(job: Job) -> list[dict]:
    return [json.loads(line) for line in (job.out / "journal.jsonl").read_text().splitlines()]


def test_a_killed_run_goes_on_and_ends_as_if_it_never_was(job_of, monkeypatch, one_thread):
    """kill -9 between checkpoints; the same command then gives the same weights to the bit."""
    whole, whole_file = job_of("whole")
    assert in_this_process(whole_file, monkeypatch) == 0

    job, file = job_of("killed")
    killed = in_a_process("-c", KILLED, str(file))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_published(job.out) is None

    assert in_this_process(file, monkeypatch) == 0
    starts = [line["start"] for line in journal(job) if "start" in line]
    assert starts == [0, KILLED_AFTER_STEP // CHECKPOINT_EVERY * CHECKPOINT_EVERY]

    found, expected = (
        load_file(part_paths(each.out, verify=True)["temporal"] / "temporal.safetensors")
        for each in (job, whole)
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name

    # Every step was taken, and none that a checkpoint had kept was taken twice.
    steps = [line["step"] for line in journal(job) if "loss" in line.get("metrics", {})]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert all(steps.count(step) == 1 for step in range(1, starts[1] + 1))
    assert not (job.out / "checkpoints").exists()

    before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*")}
    assert in_this_process(file, monkeypatch) == 0
    assert {path: path.stat().st_mtime_ns for path in job.out.rglob("*")} == before


def test_a_published_stage_tells_what_made_it(job_of, monkeypatch, one_thread, image_model):
    job, file = job_of("short", stage=STAGE.model_copy(update={"steps": 2, "cooldown": 0}))
    assert in_this_process(file, monkeypatch) == 0
    published = read_published(job.out)
    assert published is not None
    assert published.fingerprint == job.fingerprint()
    assert published.step == 2
    assert published.parents == job.parents
    assert published.commit == git_commit()
    assert sorted(published.parts) == ["scheduler", "temporal", "unet", "vae"]
    assert part_paths(job.out)["unet"] == image_model["unet"].resolve()
    assert len(published.worth) == 2
    assert published.process_seconds > 0

    # Another seed is another stage: the same folder is trained again.
    _, file = job_of("short", stage=job.stage, seed=1)
    assert in_this_process(file, monkeypatch) == 0
    again = read_published(job.out)
    assert again is not None
    assert again.fingerprint != published.fingerprint
    assert again.parts["temporal"].sha256 != published.parts["temporal"].sha256


def test_a_store_that_is_given_other_clips_is_trained_on_again(job_of, monkeypatch, tmp_path):
    """What was trained while they came is published under those it was trained on."""
    store = write_store(tmp_path / "store")
    index = Index.model_validate_json((store / "index.json").read_text())
    fewer = index.model_copy(update={"retired": {"shard-000000": (f"{0:016x}",)}})

    def judging(*given):
        (store / "index.json").write_text(fewer.model_dump_json())
        return judge(*given)

    monkeypatch.setattr(videoldm_core.train, "judge", judging)
    short = STAGE.model_copy(update={"steps": 2, "cooldown": 0})
    job, file = job_of("given more", stage=short, latents=store)
    before = job.fingerprint()
    assert in_this_process(file, monkeypatch) == 0
    first = read_published(job.out)
    assert in_this_process(file, monkeypatch) == 0
    again = read_published(job.out)
    assert first is not None
    assert again is not None
    assert first.fingerprint == before
    assert again.fingerprint == job.fingerprint() != before
    assert again.parts["temporal"].sha256 != first.parts["temporal"].sha256


class Brought:
    """A task without players: it publishes what it was given."""

    players: list[Player] = []
    frozen: list[torch.nn.Module] = []
    remark = "averages are there too"

    def __init__(self, unet: Path) -> None:
        self.unet = unet

    def finish(self, batches: Iterator[Batch]) -> None:
        """Nothing to settle."""

    def save(self, folder: Path) -> list[str]:
        shutil.copytree(self.unet, folder / "unet")
        return ["unet"]


def test_a_stage_without_players_is_judged_and_published_and_trains_nothing(
    job_of, monkeypatch, image_model
):
    monkeypatch.setattr(videoldm_core.train, "build_task", lambda *_: Brought(image_model["unet"]))
    monkeypatch.setattr(
        videoldm_core.train, "train", lambda *_, **__: pytest.fail("nothing is to be trained")
    )
    row = {"name": "image", "trains": (), "steps": 0, "cooldown": 0, "warmup": 0}
    stage = STAGE.model_copy(update=row | {"proves": BeatsLinearDenoiser(), "frames": 1})
    job, file = job_of("brought", stage=stage)
    assert in_this_process(file, monkeypatch) == 0
    published = read_published(job.out)
    assert published is not None
    assert published.step == 0
    assert published.parts["unet"].path == "weights/unet"
    assert len(published.worth) > 0
    lines = journal(job)
    assert (lines[0]["total_steps"], lines[0]["start"]) == (0, 0)
    assert lines[0]["remark"] == "averages are there too"
    assert not [line for line in lines if "metrics" in line]
    assert not (job.out / "checkpoints").exists()


def test_what_should_be_known_of_an_objective_is_said_first(job_of, monkeypatch, capsys):
    monkeypatch.setattr(
        videoldm_core.train,
        "build_task",
        lambda job, null: with_remark(build_task(job, null), "no backbone given"),
    )
    job, file = job_of("remarked", stage=STAGE.model_copy(update={"steps": 1, "cooldown": 0}))
    assert in_this_process(file, monkeypatch) == 0
    assert journal(job)[0]["remark"] == "no backbone given"
    assert capsys.readouterr().err == "predictor: no backbone given.\n"


def test_a_preview_that_fails_is_said_and_the_stage_is_published(job_of, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(videoldm_core.train, "write_preview", fail)
    short = STAGE.model_copy(update={"steps": 1, "cooldown": 0})
    job, file = job_of("no preview", stage=short)
    assert in_this_process(file, monkeypatch) == 0
    assert read_published(job.out) is not None
    reason = "no preview was made (OutOfMemoryError: CUDA out of memory.)"
    assert journal(job)[-1]["remark"] == reason
    said = f"predictor: {reason}; the stage is published without it.\n"
    assert capsys.readouterr().err == said


def test_a_loss_that_is_not_finite_is_one_sentence_and_publishes_nothing(
    job_of, monkeypatch, capsys
):
    def poisoned(job: Job, null: torch.Tensor) -> Task:
        task = build_task(job, null)
        loss = task.players[0].loss

        def nan_later(net, batch, turn):
            value, numbers = loss(net, batch, turn)
            wrong = float("nan") if turn.step == 5 else 0.0
            return value + wrong, {"loss": numbers["loss"] + wrong}

        task.players[0].loss = nan_later
        return task

    monkeypatch.setattr(videoldm_core.train, "build_task", poisoned)
    job, file = job_of("poisoned", checkpoint_every=1)
    assert in_this_process(file, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: The stage 'predictor' diverged in step 6: loss is not finite;")
    assert error.count("\n") == 1
    assert read_published(job.out) is None
    kept = sorted(path.name for path in job.out.glob("checkpoints/*/step_*"))
    assert kept == ["step_00000004", "step_00000005"]
    assert [line["step"] for line in journal(job) if "loss" in line.get("metrics", {})][-1] == 5


def test_a_micro_batch_that_does_not_fit_is_one_sentence(job_of, monkeypatch, capsys):
    _, file = job_of("micro", stage=STAGE.model_copy(update={"micro_batch": 3}))
    assert in_this_process(file, monkeypatch) == 2
    assert "micro_batch 3 does not divide the 2 clips" in capsys.readouterr().err


def test_bfloat16_micro_batches_publish_float32_and_leave_what_is_frozen(
    job_of, monkeypatch, image_model
):
    fits = {"steps": 2, "cooldown": 0, "micro_batch": 1, "checkpointing": True}
    job, file = job_of("bf16", stage=STAGE.model_copy(update=fits), precision="bf16")
    before = sha256_of_folder(image_model["unet"])
    assert in_this_process(file, monkeypatch) == 0
    paths = part_paths(job.out, verify=True)
    assert paths["unet"] == image_model["unet"].resolve()
    assert sha256_of_folder(paths["unet"]) == before
    weights = load_file(paths["temporal"] / "temporal.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def with_remark(task: Task, remark: str) -> Task:
    task.remark = remark
    return task


def test_a_job_that_is_not_there_is_one_sentence_and_exit_code_2(tmp_path: Path):
    ended = in_a_process("-m", "videoldm_core.train", str(tmp_path / "job.json"))
    assert ended.returncode == 2
    path = str(tmp_path / "job.json")
    assert ended.stderr == f"error: No job file at {path!r} (No such file or directory).\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: "{", "is not JSON"),
        (lambda job: job | {"sed": 1}, "unknown key 'sed'; did you mean 'seed'?"),
        (lambda job: job | {"latents": None}, "reads latents, but the job names no latents store"),
        (lambda job: job | {"latents": job["latents"] + "x"}, "storex"),
        (lambda job: job | {"parts": job["parts"] | {"unet": "nowhere"}}, "'nowhere/config.json'"),
        (lambda job: job | {"text_tower": "nowhere"}, "nowhere"),
        (lambda job: job | {"stage": job["stage"] | {"frames": 6}}, "no clip of 11 frames"),
    ],
    ids=["not JSON", "unknown key", "no store", "wrong store", "no unet", "no text", "too short"],
)
def test_what_is_wrong_is_said_in_one_sentence_with_exit_code_2(
    job_of, monkeypatch, capsys, change, message
):
    job, file = job_of("wrong")
    changed = change(json.loads(job.model_dump_json()))
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    assert in_this_process(file, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert read_published(job.out) is None
