"""A stage that is told labels and boxes, and one that inherits it, from a store to publication."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from videoldm_core.cascade.annotations import Box, BoxedFrame, LabelKind, Vocabulary
from videoldm_core.cascade.checks.handoffs import check_handoffs, told_vocabulary
from videoldm_core.cascade.stage import Preset, Stage, VideoFormat, preset
from videoldm_core.data.shards import (
    ClipInfo,
    Index,
    IndexedShard,
    LatentClip,
    ShardWriter,
    StoreIdentity,
)
from videoldm_core.errors import UserError
from videoldm_core.evaluation.image import BeatsLinearDenoiser
from videoldm_core.evaluation.video import BeatsImageModel, UsesFirstFrames
from videoldm_core.jobs.clips import StageData
from videoldm_core.jobs.job import Job
from videoldm_core.jobs.published import part_paths, read_published
from videoldm_core.models.condition_tokens import load_vocabulary
from videoldm_core.models.denoiser import load_denoiser
from videoldm_core.models.image import UNetConfig
from videoldm_core.models.text.encoder import TextConfig, TextTower
from videoldm_core.objectives.denoising import Denoising, ScheduleConfig
from videoldm_core.train import run

TIME = LabelKind(name="time", values=("day", "night"))
WORDS = Vocabulary(labels=(TIME,), box_classes=("car",), max_boxes=3)
IMAGE = Stage(
    name="scenario",
    paper="§5.5",
    objective=Denoising(
        unet=UNetConfig(
            widths=(16,), attention=(True,), layers_per_block=1, heads=2, text=8, groups=8
        ),
        schedule=ScheduleConfig(predicts="v_prediction"),
        tokens=WORDS,
    ),
    proves=BeatsLinearDenoiser(),
    starts_from=("autoencoder",),
    trains=("unet", "tokens"),
    reads="latents",
    frames=1,
    batch=2,
    steps=3,
    ema=0.5,
    heldout_clips=2,
)
VIDEO = Stage(
    name="temporal",
    paper="§3.1",
    objective=Denoising(alpha="scalar"),
    proves=BeatsImageModel(),
    starts_from=("scenario",),
    trains=("temporal",),
    reads="latents",
    frames=3,
    batch=2,
    steps=3,
    ema=0.5,
    heldout_clips=2,
)


def write_store(folder: Path, *, with_boxes: bool = True) -> Path:
    """Four clips of random latents, one of them held out; each has boxes in two frames."""
    identity = StoreIdentity(
        kind="latents",
        encoder="e",
        preprocessing="p",
        fps=8,
        height_px=8,
        width_px=8,
        text="t",
    )
    folder.mkdir()
    g = np.random.default_rng(0)
    name = "shard-000000"
    with ShardWriter(folder / f"{name}.tar", shard=name, identity=identity) as tar:
        for i in range(4):
            boxes = (BoxedFrame(1, (Box("car", 0.0, 0.0, 0.5, 1.0),)), BoxedFrame(4, ()))
            info = ClipInfo(
                key=f"{i:016x}",
                source=f"{i}.mp4",
                source_digest="d",
                start_s=0.0,
                fps=8,
                frames=6,
                caption="",
                split="train" if i < 3 else "heldout",
                labels={"time": "night"} if i % 2 else {},
                boxes=boxes if with_boxes else (),
            )
            latents = g.standard_normal((6, 4, 4, 4)).astype(np.float16)
            tar.add(LatentClip(info=info, latents=latents, text=np.ones((4, 8), np.float16)))
    manifest = tar.manifest()
    (folder / f"{name}.json").write_text(manifest.model_dump_json())
    shard = IndexedShard(name=name, sha256=manifest.sha256, samples=4)
    index = Index(kind="latents", identity=identity, shards=(shard,))
    (folder / "index.json").write_text(index.model_dump_json())
    return folder


@pytest.fixture
def job_of(image_model: dict[str, Path], tmp_path: Path) -> Callable[..., Job]:
    """job_of(stage, parts): a job on the store, with an image model's autoencoder."""
    store = write_store(tmp_path / "store")
    config = TextConfig(context_length=4, width=8, heads=2, layers=1)
    TextTower.build(config).save(tmp_path / "text_tower")

    def make(stage: Stage, parts: dict[str, Path] | None = None, **changes) -> Job:
        options = {
            "stage": stage,
            "video": VideoFormat(fps=8, height=8, width=8, clip_seconds=2),
            "parts": parts or {"vae": image_model["vae"]},
            "parents": {},
            "latents": store,
            "text_tower": tmp_path / "text_tower",
            "out": tmp_path / stage.name,
        }
        return Job.model_validate(options | changes)

    return make


def test_tokens_are_trained_published_and_inherited(job_of: Callable[..., Job]):
    first = job_of(IMAGE)
    run(first)
    parts = part_paths(first.out, verify=True)
    assert set(parts) == {"vae", "unet", "scheduler", "tokens"}
    assert load_vocabulary(parts["tokens"]) == WORDS
    assert (first.out / "previews" / "heldout.png").stat().st_size > 0

    second = job_of(VIDEO, parts)
    run(second)
    published = read_published(second.out)
    assert published is not None
    assert published.worth
    later = part_paths(second.out, verify=True)
    assert later["tokens"] == parts["tokens"].resolve()
    assert load_denoiser(later).vocabulary == WORDS


def test_a_stage_of_boxes_sees_annotated_frames_alone_and_its_heirs_see_all(
    job_of: Callable[..., Job], tmp_path: Path
):
    data = StageData(job_of(IMAGE), rank=0, world=1)
    windows = data.windows("train")
    assert [(w.sample, w.start) for w in map(windows.__getitem__, range(len(windows)))] == [
        (sample, frame) for sample in range(3) for frame in (1, 4)
    ]
    (batch,) = data.heldout(2)
    assert batch.told is not None
    assert batch.told.boxes[:, 0, 0].tolist() == [2, 1]

    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "tokens.json").write_text(WORDS.model_dump_json())
    heir = StageData(job_of(VIDEO, {"tokens": tmp_path / "tokens"}), rank=0, world=1)
    first = IMAGE.model_copy(update={"starts_from": ()})
    both = preset("driving").model_copy(update={"stages": (first, VIDEO)})
    planned = [told_vocabulary(stage, both) for stage in both.stages]
    assert planned == [data.vocabulary, heir.vocabulary], "as was said before training"
    assert heir.windows("train").counts == (3 * 4,)
    (batch,) = heir.heldout(1)
    assert batch.told is not None
    assert batch.told.labels.tolist() == [[2]]
    assert not batch.told.boxes.any()


def test_a_stage_of_boxes_without_boxes_is_refused(job_of: Callable[..., Job], tmp_path: Path):
    job = job_of(IMAGE, latents=write_store(tmp_path / "plain", with_boxes=False))
    with pytest.raises(UserError, match=r"None of the 3 clips of the train split has a frame with"):
        run(job)


class Deaf(torch.nn.Module):
    """A tower of tokens that counts how often it is asked."""

    def __init__(self, tokens) -> None:
        super().__init__()
        self.tokens, self.asked = tokens, 0
        self.vocabulary = tokens.vocabulary

    def condition(self, text, told):
        assert told is not None
        self.asked += 1
        return self.tokens.condition(text, told)


@pytest.mark.parametrize("proof", [BeatsImageModel(), UsesFirstFrames(), BeatsLinearDenoiser()])
def test_proofs_tell_the_model_what_the_clips_are_told(
    proof, job_of: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
):
    from videoldm_core.evaluation import image as image_proofs
    from videoldm_core.evaluation import video as video_proofs
    from videoldm_core.evaluation.measuring import Evidence
    from videoldm_core.objectives.build import build_task

    job = job_of(IMAGE)
    model = build_task(job, torch.zeros(4, 8)).model  # type: ignore[attr-defined]
    model.tokens = listening = Deaf(model.tokens)
    for module in (image_proofs, video_proofs):
        monkeypatch.setattr(module, "load_denoiser", lambda parts: model)
    data = StageData(
        job_of(VIDEO.model_copy(update={"objective": IMAGE.objective})), rank=0, world=1
    )
    evidence = Evidence(
        parts={}, inherited={}, heldout=data.heldout(1), training=data.training_clips
    )
    with torch.no_grad():
        assert proof.measure(evidence)
    assert listening.asked > 0


def table(**changes) -> Preset:
    driving = preset("driving")
    rows = tuple(
        row.model_copy(update=changes) if row.name == "image" else row for row in driving.stages
    )
    return driving.model_copy(update={"stages": rows})


def test_tokens_that_do_not_fit_the_table_are_refused():
    image = preset("driving").stage("image")
    strange = Vocabulary(labels=(LabelKind(name="time", values=("night", "day")),))
    boxes = Vocabulary(labels=preset("driving").labels, box_classes=("car",))
    with pytest.raises(UserError, match=r"'image' has tokens of labels or boxes that the preset"):
        check_handoffs(table(objective=image.objective.model_copy(update={"tokens": strange})))
    with pytest.raises(UserError, match=r"'image' has new tokens, but trains unet"):
        check_handoffs(table(trains=("unet",)))
    objective = image.objective.model_copy(update={"tokens": None})
    with pytest.raises(UserError, match=r"'image' needs 'tokens' from what it starts from"):
        check_handoffs(table(objective=objective))
    with_boxes = table(objective=image.objective.model_copy(update={"tokens": boxes}), frames=2)
    with pytest.raises(UserError, match=r"'image' learns boxes and reads 2 frames"):
        check_handoffs(with_boxes.model_copy(update={"box_classes": ("car",)}))
