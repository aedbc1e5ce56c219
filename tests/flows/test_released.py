"""A release of small untrained stages, registered in a real registry and loaded by MLflow."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import boto3
import mlflow
import pandas
import pytest
from moto.server import ThreadedMotoServer

from flows.released import Released, lay_out
from flows.tracking.tracker import Tracker
from tests.videoldm_core.releases import request_for
from videoldm_core import generate as generating
from videoldm_core.errors import UserError
from videoldm_core.generate import generate
from videoldm_core.jobs.published import part_paths

from .conftest import defaults

ROOT = Path(__file__).resolve().parents[2]

LOAD = """
import hashlib, mlflow, sys
model = mlflow.pyfunc.load_model(sys.argv[1])
video = model.predict([{"prompt": "a red car"}])["video"][0]
sys.stdout.write(hashlib.sha256(video).hexdigest())
"""


def kept(model: str, version: int = 1) -> Path:
    """Where the files of a version are."""
    source = mlflow.MlflowClient().get_model_version(model, str(version)).source
    assert source
    return Path(source.removeprefix("file://"))


def replace(path: Path, content: bytes) -> None:
    path.unlink()  # it is a second name for the fixture's file
    path.write_bytes(content)


def generated(released, out: Path, **changes) -> bytes:
    generate(request_for(released, out, **changes))
    return out.read_bytes()


def frames_in(video: bytes, folder: Path) -> int:
    path = folder / "predicted.mp4"
    path.write_bytes(video)
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_release_predicts_the_bytes_that_generate_writes(
    register, released, tmp_path, monkeypatch
):
    register("a", seed=5)
    model = mlflow.pyfunc.load_model("models:/a-release@candidate")
    rows = [
        {"prompt": "a red car"},
        {"prompt": "rain", "seed": 7, "key_frames": 3, "passes": 0},
    ]
    with monkeypatch.context() as patched:
        patched.setattr(generating, "load_cascade", None)  # everything is loaded already
        videos = model.predict(rows)["video"]
    assert [frames_in(video, tmp_path) for video in videos] == [5, 3]
    assert videos[0] == generated(released, tmp_path / "a" / "v.mp4", seed=5)
    changes = {"prompt": "rain", "seed": 7, "key_frames": 3, "passes": 0}
    assert videos[1] == generated(released, tmp_path / "b" / "v.mp4", **changes)
    frame = pandas.DataFrame(rows[::-1])  # a data frame has floats and empty cells there
    assert list(model.predict(frame)["video"]) == list(videos[::-1])


def test_a_fresh_process_loads_it_by_alias_and_predicts_the_same(
    register, released, tmp_path, one_thread
):
    register("b")
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", LOAD, "models:/b-release@candidate"],
        env=shared,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    expected = generated(released, tmp_path / "v.mp4")
    assert answer.stdout == hashlib.sha256(expected).hexdigest()


def test_weights_of_a_local_artifact_store_are_found_and_not_copied(register, tmp_path):
    release = register("c")
    stages = lay_out(release, tmp_path)
    image = kept("c-image").resolve()
    assert part_paths(stages["interpolator"])["unet"] == image / "weights" / "unet"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files if not path.is_symlink()} == set()


def test_a_release_on_an_artifact_store_without_files_is_downloaded(
    register, released, s3_tracker, tmp_path
):
    register("d", tracker=s3_tracker)
    model = mlflow.pyfunc.load_model("models:/d-release/1")
    source = mlflow.MlflowClient().get_model_version("d-image", "1").source
    assert source is not None
    assert source.startswith("s3://")
    video = model.predict([{"prompt": "a red car"}])["video"][0]
    assert video == generated(released, tmp_path / "v.mp4")


@pytest.fixture
def s3_tracker(monkeypatch, tmp_path) -> Iterator[Tracker]:
    """A registry whose artifacts are on S3."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    boto3.client("s3").create_bucket(Bucket="artifacts")
    tracker = Tracker(uri=uri, experiment="remote", out=tmp_path)
    with tracker.client_or_none() as client:
        client.create_experiment("remote", artifact_location="s3://artifacts/remote")
    yield tracker
    server.stop()


@pytest.mark.parametrize(
    ("model", "file", "sentence"),
    [
        ("image", "weights/unet/diffusion_pytorch_model.safetensors", "Part 'unet' at .* is not"),
        ("temporal", "stage.json", "Version 1 of '.*-temporal' is not what the release pins"),
        ("release", "data/release/request.json", "'.*request.json' is not what the release pins"),
        ("release", "data/release/text_tower/model.safetensors", "'.*text_tower' is not what"),
    ],
)
def test_what_is_not_what_was_pinned_is_refused(register, model, file, sentence):
    name = f"changed-{Path(file).stem}-{model}"
    register(name)
    path = kept(f"{name}-{model}") / file
    replace(path, path.read_bytes().replace(b"\n", b" \n") + b"\n")
    with pytest.raises(UserError, match=sentence):
        mlflow.pyfunc.load_model(f"models:/{name}-release/1")


def test_a_version_whose_files_are_gone_is_named(register):
    register("gone")
    for path in sorted(kept("gone-decoder").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    kept("gone-decoder").rmdir()
    with pytest.raises(UserError, match="Cannot get version 1 of 'gone-decoder'"):
        mlflow.pyfunc.load_model("models:/gone-release/1")


def test_a_registry_that_lacks_a_pinned_version_is_told(register, tmp_path, monkeypatch):
    folder = (register("e"), kept("e-release"))[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(UserError, match=r"Cannot get version 1 of 'e-.*set MLflow's tracking URI"):
        mlflow.pyfunc.load_model(str(folder))


@pytest.fixture(scope="module")
def loaded() -> dict[str, Released]:
    return {}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([{"prompt": "x", "sed": 3}], "row 0: unknown key 'sed'; did you mean 'seed'?"),
        ([{"prompt": "x"}, {"seed": 3}], "row 1: key 'prompt' is missing"),
        ([{"prompt": "x", "passes": "many"}], "row 0: passes = 'many'"),
        ([{"prompt": "x", "passes": 3}], "row 0: passes = 3: .* less than or equal to 2"),
        ([{"prompt": "x", "labels": {"time": "day"}}], "names the label 'time', but none of"),
        ("a red car", "The input is str; expected a data frame or a list of rows"),
    ],
)
def test_what_a_release_cannot_make_is_refused_in_a_sentence(register, loaded, given, sentence):
    if not loaded:
        register("f")
        loaded["f"] = mlflow.pyfunc.load_model("models:/f-release/1")
    with pytest.raises(UserError, match=sentence):
        loaded["f"].predict(given)


def test_another_default_is_another_version_and_the_same_ones_are_not(register):
    first, again = register("g"), register("g")
    other = register("g", sampling={**defaults().sampling, "upscale_noise_timestep": 5})
    assert (first.version, again.version, other.version) == (1, 1, 2)
    assert first.stages == other.stages
