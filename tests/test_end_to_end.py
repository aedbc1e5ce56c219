"""The whole cascade with its real components: mp4 files through every stage to a sampled video.

Real processes throughout: the command line, an embedded Prefect server, DeepSpeed on two gloo
processes, MLflow on SQLite. Two steps each are too few to learn anything; that every stage does at
the tiny preset's own size is what `make demo` shows.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import mlflow
import pytest

from videoldm_core.cascade.stage import preset
from videoldm_core.jobs.published import part_paths, published_digest, read_published

STAGES = preset("tiny").stages
SMALL = [
    "world.videos=8",
    "world.seconds=4.5",
    "sample.key_frames=3",
    "sample.passes=1",
    "sample.sampling.steps=1",
    "sample.sampling.upscale_steps=1",
    *(f"stages.{stage.name}.steps=2" for stage in STAGES),
    *(f"stages.{stage.name}.heldout_clips=2" for stage in STAGES),
    "stages.decoder.objective.critic_starts_at=1",
]


def videoldm(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
        capture_output=True,
        text=True,
        check=False,
    )


# Whichever test comes first makes the whole cascade, maybe on a machine that others keep busy.
pytestmark = pytest.mark.timeout(7200)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("cascade") / "run"
    done = videoldm("run", "tiny", f"out={out}", *SMALL)
    assert (out / "video.mp4").is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    return out, done


def test_every_stage_is_published_with_its_parents_and_its_worth(finished):
    out, _ = finished
    for stage in STAGES:
        published = read_published(out / "stages" / stage.name)
        assert published is not None, stage.name
        assert published.step == 2
        assert published.parents == {
            parent: published_digest(out / "stages" / parent) for parent in stage.starts_from
        }
        assert len(published.worth) == len(stage.proves.claims)
        assert part_paths(out / "stages" / stage.name, verify=True)


def test_the_sampled_video_has_the_frames_asked_for(finished):
    out, _ = finished
    with av.open(str(out / "video.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 4 * (3 - 1) + 1
    assert (frames[0].height, frames[0].width) == (160, 256)
    assert (out / "video.gif").read_bytes()[:3] == b"GIF"


def test_the_report_stands_alone(finished):
    out, _ = finished
    page = (out / "report.html").read_text()
    assert "data:video/mp4;base64," in page
    assert 'src="http' not in page
    assert all(stage.name in page for stage in STAGES)


def test_runs_are_nested_and_a_release_pins_one_version_of_each_stage(finished):
    out, _ = finished
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    nested = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert {run.info.run_name for run in nested} >= {stage.name for stage in STAGES}
    release = json.loads((out / "release.json").read_text())
    for stage in STAGES:
        (version,) = client.search_model_versions(f"name='demo-{stage.name}'")
        assert stage.name in json.dumps(release), release
        assert version.tags


def test_shards_are_read_by_plain_webdataset(finished):
    import webdataset

    out, _ = finished
    (shard, *_) = sorted((out / "latents").glob("*/shard-*.tar"))
    (sample, *_) = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode())
    assert sample["latents.npy"].shape[1:] == (4, 10, 16)
    assert sample["json"]["frames"] == len(sample["latents.npy"])


def test_running_it_again_trains_nothing(finished):
    out, _ = finished
    before = {s.name: published_digest(out / "stages" / s.name) for s in STAGES}
    again = videoldm("run", "tiny", f"out={out}", *SMALL)
    assert {s.name: published_digest(out / "stages" / s.name) for s in STAGES} == before
    assert "0 of 16 steps to do" in again.stdout or "everything" in again.stdout.lower(), (
        again.stdout
    )
