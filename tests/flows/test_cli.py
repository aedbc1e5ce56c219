"""What a user gets from the command line: help, one sentence per mistake, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.launch import Command, StageCrashed
from flows.launch.supervisor import End
from flows.runner import session
from flows.runner.failures import StepsFailed
from videoldm_core.cascade.stage import preset
from videoldm_core.errors import UserError

ROOT = Path(__file__).parents[2]
COMMANDS = ["run", "admit", "encode", "train", "sample", "evaluate", "doctor"]


def videoldm(*words: str):
    return CliRunner().invoke(app, list(words))


def in_a_process(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = videoldm(command, "--help")
    assert result.exit_code == 0
    assert f"Example: videoldm {command}" in result.output


def test_help_waits_for_no_heavy_import():
    heavy = "{'torch', 'prefect', 'mlflow', 'diffusers', 'matplotlib', 'av'}"
    source = f"import sys, flows.cli; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_a_mistake_is_one_sentence_on_stderr_without_a_traceback():
    result = in_a_process("run", "tiny", "sed=3")
    assert result.returncode == 2
    assert result.stdout == ""
    sentence = "error: the run file tiny.yaml: unknown key 'sed'; did you mean 'seed'?\n"
    assert result.stderr == sentence


@pytest.mark.parametrize(
    "words",
    [
        ("doctor", "x" * 300),
        ("doctor", "text_to_video", f"pretrained.image_model={'x' * 300}"),
        ("doctor", "driving", f"sample.first_frame={'x' * 300}"),
    ],
)
def test_a_name_that_no_file_can_have_is_one_sentence(words):
    result = videoldm(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_an_unknown_stage_is_named_with_the_nearest(tmp_path):
    result = videoldm("train", "temporl", "tiny", f"out={tmp_path}")
    assert result.exit_code == 2
    assert result.stderr == "error: Unknown stage 'temporl'; did you mean 'temporal'?\n"


def test_a_stage_whose_parent_is_missing_says_which_command_makes_it(tmp_path):
    result = videoldm("train", "predictor", "tiny", f"out={tmp_path}")
    assert result.exit_code == 2
    assert "needs the stage 'autoencoder', which is not trained" in result.stderr
    assert "videoldm train autoencoder" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "run.json"]


def test_sampling_without_trained_stages_says_which_is_missing(tmp_path):
    result = videoldm("sample", "tiny", f"out={tmp_path}")
    assert result.exit_code == 2
    assert "error: The stage 'autoencoder' is not trained" in result.stderr


def test_evaluating_without_a_trained_stage_says_how_to_get_one(tmp_path):
    result = videoldm("evaluate", "tiny", f"out={tmp_path}", "--stage", "temporal")
    assert result.exit_code == 2
    assert "There is no trained stage temporal" in result.stderr
    assert "videoldm train temporal" in result.stderr


def test_an_output_folder_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    result = videoldm("run", "tiny", f"out={tmp_path / 'file' / 'run'}")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Cannot write")
    assert len(result.stderr.splitlines()) == 1


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LEAST_FREE_BYTES", 2**60)
    result = videoldm("run", "tiny", f"out={tmp_path}")
    assert result.exit_code == 2
    assert "MiB free; a run needs at least" in result.stderr


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (StepsFailed({"temporal": RuntimeError("boom")}), 1, "step 'temporal' failed: boom"),
        (UserError("The moon is full."), 2, "The moon is full."),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from here."),
        (OSError(28, "No space left on device", "x"), 2, "Cannot write 'x': No space left on"),
        (OSError(13, "Permission denied", "x"), 2, "Cannot use 'x': Permission denied."),
    ],
)
def test_what_ends_a_run_becomes_a_sentence_and_a_code(monkeypatch, raised, code, sentence):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(session, "work", fail)
    result = videoldm("run", "tiny")
    assert result.exit_code == code
    assert result.stderr.startswith(f"error: {sentence}")


def test_what_a_crash_says_is_printed_without_what_a_terminal_would_obey(monkeypatch):
    command = Command(module="m", argument=Path("j"), processes=0, log=Path("l"), journal=Path("j"))
    causes = {
        "pixels": RuntimeError("a\nerror: b\x1b[2J.mp4"),
        "text": StageCrashed(command, End(0, -9), "error: c\x1b[2J.mp4\nlast"),
    }

    def fail(*_, **__):
        raise StepsFailed(causes)

    monkeypatch.setattr(session, "work", fail)
    assert videoldm("run", "tiny").stderr.splitlines() == [
        r"error: step 'pixels' failed: a\nerror: b\x1b[2J.mp4; step 'text' failed: m was ended by "
        "signal 9; its log is 'l', the last lines are:",
        r"  error: c\x1b[2J.mp4",
        "  last",
    ]


def _no_child():
    raise UserError("it did not start")


def test_the_doctor_shows_everything_a_run_needs(tmp_path):
    result = videoldm("doctor", "tiny", f"out={tmp_path}")
    assert result.exit_code == 0, result.output
    for looked_at in ("torch", "deepspeed", "cores", "memory", "free disk", "MLflow", "Prefect"):
        assert looked_at in result.stdout
    assert "in child processes" in result.stdout


@pytest.mark.parametrize(
    ("reach", "shown"),
    [
        (lambda: "", "good  decoding              in child processes without network"),
        (lambda: "no", "note  decoding              in child processes that could reach the netw"),
        (_no_child, "bad   decoding              no child process can decode: it did not start"),
    ],
)
def test_the_doctor_says_what_decoding_can_reach(reach, shown, tmp_path, monkeypatch):
    monkeypatch.setattr("preprocessing.isolation.workers.network_in_reach", reach)
    result = videoldm("doctor", "tiny", f"out={tmp_path}")
    assert shown in result.stdout
    assert result.exit_code == (1 if shown.startswith("bad") else 0)


def test_the_doctor_says_what_memory_every_stage_takes_on_the_runs_processes(tmp_path):
    table = {}
    for processes in (1, 2):
        result = videoldm("doctor", "tiny", f"out={tmp_path}", f"processes={processes}")
        head, *rows = result.stdout.partition("ZeRO-0")[2].splitlines()
        assert head.split() == ["ZeRO-1", "ZeRO-2", "ZeRO-3", "a", "step", "judging"]
        table[processes] = {row.split()[0]: row.split()[1:] for row in rows[:8]}
        assert "estimate" in result.stdout
    assert list(table[1]) == [row.name for row in preset("tiny").stages]
    unet_and_phi = [row[:4] for row in (table[1]["temporal"], table[2]["temporal"])]
    assert unet_and_phi == [["2.49", "M", "1.99", "M"]] * 2
    zero_3_of_one, zero_3_of_two = (float(table[n]["temporal"][7]) for n in (1, 2))
    assert 0.5 * zero_3_of_one < zero_3_of_two < 0.9 * zero_3_of_one


def test_the_doctor_looks_into_the_folders_of_brought_models(
    tmp_path, stable_diffusion, x4_upscaler
):
    def told(image: Path, upscaler: Path):
        models = [f"pretrained.image_model={image}", f"pretrained.image_upscaler={upscaler}"]
        return videoldm("doctor", "text_to_video", f"out={tmp_path}", *models)

    assert told(stable_diffusion, x4_upscaler).exit_code == 0
    swapped = told(x4_upscaler, stable_diffusion)
    assert swapped.exit_code == 1
    assert "is not like Stable Diffusion 1.x or 2.x: its UNet takes 7" in swapped.stdout
    assert "is not like the x4-upscaler: its UNet takes 4 channels" in swapped.stdout
    (tmp_path / "empty").mkdir()
    assert told(tmp_path / "empty", x4_upscaler).exit_code == 1


def test_the_doctor_fails_where_a_run_would(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    (tmp_path / "file").write_text("")
    result = videoldm("doctor", "tiny", f"out={tmp_path}", "tracking_uri=http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "MLflow" in result.stdout
    assert "metrics wait until it does" in result.stdout
    assert "PREFECT_API_URL = 'http://127.0.0.1:9/api' does not answer" in result.stdout
