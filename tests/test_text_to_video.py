"""The text-to-video cascade from an image model and an upscaler that the user brings, in small.

The preset's own rows on models laid out as Stable Diffusion and its x4-upscaler are, in bfloat16,
with micro batches and recomputed activations; two steps each, so that nothing learns anything.
"""

import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
import yaml

from videoldm_core.cascade.stage import preset
from videoldm_core.data.loader import read_batch
from videoldm_core.data.plan import Windows
from videoldm_core.data.store import open_store
from videoldm_core.jobs.job import load_job
from videoldm_core.jobs.published import part_paths, read_published
from videoldm_core.models.text.source import OF_PIXELS

TABLE = preset("text_to_video")
ROW = {"batch": 2, "micro_batch": 1, "heldout_clips": 2}
TRAINED = {"steps": 2, "warmup": 0} | ROW


# Whichever test comes first makes the whole cascade, maybe on a machine that others keep busy.
pytestmark = pytest.mark.timeout(7200)


@pytest.fixture(scope="module")
def finished(stable_diffusion: Path, x4_upscaler: Path, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("text to video")
    rows = {row.name: TRAINED if row.trains else ROW for row in TABLE.stages}
    rows["decoder"] = TRAINED | {
        "objective": {"critic_starts_at": 1, "critic": {"width": 8, "layers": 2}}
    }
    rows["upscaler"] = TRAINED | {"crop": 64}
    values = {
        "preset": TABLE.name,
        "name": "small",
        "out": str(folder / "run"),
        "pretrained": {"image_model": str(stable_diffusion), "image_upscaler": str(x4_upscaler)},
        "precision": "bf16",
        "video": {"fps": 16, "height": 32, "width": 48, "clip_seconds": 9},
        "world": {"videos": 8, "seconds": 7.2},
        "stages": rows,
        "sample": {
            "key_frames": 8,
            "passes": 1,
            "sampling": {"steps": 1, "interpolation_steps": 1, "upscale_steps": 1},
        },
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", str(path)],
        env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
        capture_output=True,
        text=True,
        check=False,
    )
    out = folder / "run"
    assert (out / "video.mp4").is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    return out, done.stdout


def test_eight_key_frames_become_a_video_of_twenty_nine_at_four_times_the_size(finished):
    out, _ = finished
    with av.open(str(out / "video.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 29
    assert (frames[0].height, frames[0].width) == (4 * 32, 4 * 48)


def test_every_stage_is_published_the_brought_ones_untrained(finished):
    out, _ = finished
    for row in TABLE.stages:
        published = read_published(out / "stages" / row.name)
        assert published is not None, row.name
        assert published.step == (2 if row.trains else 0)
        assert len(published.worth) == len(row.proves.claims)
        assert part_paths(out / "stages" / row.name, verify=True)


def test_a_stage_keeps_only_what_it_changed_of_the_brought_model(finished):
    out, _ = finished
    made = {
        row.name: {p.name for p in (out / "stages" / row.name / "weights").iterdir()}
        for row in TABLE.stages
    }
    assert made == {
        "image_model": {"unet", "scheduler", "vae"},
        "image": {"unet", "scheduler"},
        "temporal": {"temporal"},
        "interpolator": {"unet", "scheduler", "temporal"},
        "decoder": {"vae", "temporal_decoder"},
        "image_upscaler": {"unet", "scheduler", "own_vae"},
        "upscaler": {"temporal"},
    }


def test_texts_are_embedded_by_the_tower_of_who_reads_them(finished):
    """The x4-upscaler was trained with another tower than the image model beside it may have."""
    out, _ = finished
    widths = {}
    for kind in ("latents", "pixels"):
        (index,) = (out / kind).glob("*/index.json")
        store = open_store(index.parent)
        windows = Windows(store, frames=1, strides=(1,), split="train")
        widths[kind] = read_batch(store, windows, [0]).text.shape[-1]
    assert widths == {"latents": 32, "pixels": 48}
    towers = {
        row.name: load_job(out / "stages" / row.name / "job.json").text_tower
        for row in TABLE.stages
    }
    of_pixels = {name for name, tower in towers.items() if tower.name == OF_PIXELS}
    assert of_pixels == {"image_upscaler", "upscaler"}


def test_the_missing_perceptual_backbone_is_stated(finished):
    out, _ = finished
    first = (out / "stages" / "decoder" / "journal.jsonl").read_text().splitlines()[0]
    assert "perceptual" in first
