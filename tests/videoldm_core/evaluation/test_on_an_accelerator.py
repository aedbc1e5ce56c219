"""Judging, watching and showing on an accelerator, on tensors that have a device and no data.

A tensor of the CPU among those of the accelerator fails here as it does there.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from videoldm_core.cascade.annotations import LabelKind, Vocabulary
from videoldm_core.cascade.stage import Stage, preset
from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import (
    AnyGiven,
    FirstFrames,
    KeyFrames,
    LowResolution,
    Nothing,
)
from videoldm_core.diffusion.labels_boxes import told_of
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.evaluation import image, measuring, previews, video
from videoldm_core.evaluation.image import BeatsBilinear, BeatsLinearDenoiser, ReconstructsFrames
from videoldm_core.evaluation.measuring import Evidence
from videoldm_core.evaluation.video import (
    BeatsImageModel,
    SteadierDecoding,
    SteadierUpscaling,
    UsesFirstFrames,
    UsesKeyFrames,
)
from videoldm_core.jobs.job import Job
from videoldm_core.models.discriminator import CriticConfig
from videoldm_core.models.image import AutoencoderConfig, UNetConfig
from videoldm_core.models.video_decoder import TemporalDecoderLayers, temporal_decoder_for
from videoldm_core.objectives.autoencoding import Autoencoding, AutoencodingTask
from videoldm_core.objectives.decoding import DecodingTask, TemporalDecoding
from videoldm_core.objectives.denoising import Denoising, DenoisingTask, ScheduleConfig
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.task import Task
from videoldm_core.training.train_module import Turn

WORDS = Vocabulary(labels=(LabelKind(name="time", values=("day", "night")),))
UPSCALER = UNetConfig(
    in_channels=6,
    out_channels=3,
    widths=(16, 32),
    attention=(False, False),
    layers_per_block=1,
    text=8,
    groups=8,
    told_noise_level=True,
)
LOADERS = ("load_denoiser", "load_vae", "temporal_decoder_for")
DEVICE = torch.device("cuda")
NOTHING = Nothing()
DETAIL = LowResolution(factor=2, detail_scale=8.0)
KEYS = KeyFrames(max_noise_timestep=250)
LATENTS, FRAMES = (2, 5, 4, 8, 8), (2, 5, 3, 16, 16)

# name -> what a denoiser is given, its parts and the shape of its clips
DENOISERS: dict[str, tuple[Any, str, tuple[int, ...]]] = {
    "image": (Denoising(), "told", (2, 1, 4, 8, 8)),
    "temporal": (Denoising(alpha="per_frame"), "told", LATENTS),
    "predictor": (Denoising(alpha="scalar", given=FirstFrames(), context_reach=1), "told", LATENTS),
    "interpolator": (Denoising(alpha="scalar", given=KEYS), "told", LATENTS),
    "image_upscaler": (Denoising(given=DETAIL), "pixels", (2, 1, 3, 16, 16)),
    "upscaler": (Denoising(alpha="scalar", given=DETAIL), "pixels", FRAMES),
    "latent_upscaler": (Denoising(alpha="scalar", given=LowResolution(factor=2)), "own", FRAMES),
}
PROOFS = {
    "image": BeatsLinearDenoiser(),
    "temporal": BeatsImageModel(),
    "predictor": UsesFirstFrames(),
    "interpolator": UsesKeyFrames(),
    "image_upscaler": BeatsBilinear(),
    "upscaler": SteadierUpscaling(),
    "latent_upscaler": SteadierUpscaling(),
}


@pytest.fixture(scope="module")
def models(small_unet: UNetConfig, tmp_path_factory) -> dict[str, dict[str, Path]]:
    """Parts of image models by what they diffuse, and of a video decoder."""
    folder = tmp_path_factory.mktemp("models")
    vae = AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4).build(0)
    vae.save_pretrained(folder / "vae")
    temporal_decoder_for(vae, seed=0).save(folder / "temporal_decoder")
    ScheduleConfig(predicts="v_prediction").build().save(folder / "scheduler")
    unets = {
        "told": small_unet,
        "pixels": UPSCALER,
        "own": UPSCALER.model_copy(update={"in_channels": 7, "out_channels": 4}),
    }
    for name, config in unets.items():
        config.build(0).save_pretrained(folder / name)
    new = Denoising(unet=small_unet, schedule=ScheduleConfig(), tokens=WORDS)
    task_of(new, {}, (2, 1, 4, 8, 8), trains=("unet", "tokens")).save(folder / "new")
    always = {"scheduler": folder / "scheduler", "vae": folder / "vae"}
    own = {"scheduler": folder / "scheduler", "own_vae": folder / "vae"}
    return {
        "told": always | {"unet": folder / "told", "tokens": folder / "new/tokens"},
        "pixels": {"scheduler": folder / "scheduler", "unet": folder / "pixels"},
        "own": own | {"unet": folder / "own"},
        "decoder": always | {"temporal_decoder": folder / "temporal_decoder"},
    }


def task_of(
    objective: Denoising, parts: dict[str, Path], shape: tuple[int, ...], *, trains=("temporal",)
) -> DenoisingTask:
    return DenoisingTask(
        objective,
        parts=parts,
        trains=trains,
        frames=shape[1],
        strides=2 if isinstance(objective.given, KeyFrames) else 1,
        crop=None,
        null_text=torch.zeros(4, 8),
        optimizer=OptimizerConfig(),
        seed=0,
    )


@pytest.fixture
def published(models, tmp_path) -> Callable[[str], dict[str, Path]]:
    """published("predictor"): parts of an untrained denoiser of that name."""

    def save(name: str) -> dict[str, Path]:
        objective, kind, shape = DENOISERS[name]
        written = task_of(objective, models[kind], shape).save(tmp_path)
        return models[kind] | {part: tmp_path / part for part in written}

    return save


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors have a device and no data; weights are read from files as ever, then moved."""
    for module in (image, video, previews):
        for name in LOADERS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, outside(getattr(module, name)))
    monkeypatch.setattr(TemporalDecoderLayers, "load", outside(TemporalDecoderLayers.load))
    monkeypatch.setattr(measuring, "SEEDS", measuring.SEEDS[:1])
    for module in (measuring, image):
        monkeypatch.setattr(module, "LEVELS", measuring.LEVELS[:1])
    # What reads values, and so needs data.
    monkeypatch.setattr(measuring, "guessing_level", lambda schedule: 700)
    monkeypatch.setattr(previews, "sample", one_step)
    monkeypatch.setattr(previews, "picture", lambda rows: Picture(previews.pixels_of(rows)))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield


def outside(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **named: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **named)

    return run


def one_step(predict, noise, schedule, **_: Any) -> torch.Tensor:
    return predict(noise, torch.full((len(noise),), 700, device=noise.device))


class Picture:
    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def save(self, path: Path) -> None:
        assert self.pixels.device.type == "cpu"
        path.touch()


def moved(module: nn.Module) -> None:
    """Puts the accelerator's in the place of all weights, however often modules share them."""
    for layer in module.modules():
        for name, value in layer.named_parameters(recurse=False):
            layer.register_parameter(name, nn.Parameter(value.to(DEVICE), value.requires_grad))
        for name, value in layer.named_buffers(recurse=False):
            setattr(layer, name, value.to(DEVICE))


def batch_of(shape: tuple[int, ...]) -> Batch:
    clips = shape[0]
    return Batch(
        clip=torch.zeros(shape),
        text=torch.zeros(clips, 4, 8),
        stride_index=torch.zeros(clips, dtype=torch.long),
        sample_ids=range(clips),  # type: ignore[arg-type] - values that can be read
        told=told_of(WORDS, [({"time": "day"}, None)] * clips),
    )


def evidence_of(
    parts: dict[str, Path], shape: tuple[int, ...], given: AnyGiven = NOTHING
) -> Evidence:
    return Evidence(
        parts=parts,
        given=given,
        inherited=parts,
        heldout=[batch_of(shape)],
        training=lambda: [batch_of(shape)],
        device=DEVICE,
    )


def test_tensors_of_two_devices_do_fail_here(accelerator):
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device=DEVICE) * torch.zeros(2)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_are_judged_where_their_networks_are(name, published, request):
    parts, proof = published(name), PROOFS[name]
    request.getfixturevalue("accelerator")
    series = proof.measure(evidence_of(parts, DENOISERS[name][2], DENOISERS[name][0].given))
    assert {values.device.type for values in series.values()} == {"cpu"}
    assert {value for claim in proof.claims for value in (claim.value, *claim.beats)} <= set(series)


@pytest.mark.parametrize(
    ("proof", "shape"), [(ReconstructsFrames(), (2, 1, 3, 16, 16)), (SteadierDecoding(), FRAMES)]
)
def test_autoencoders_are_judged_where_their_networks_are(proof, shape, models, accelerator):
    series = proof.measure(evidence_of(models["decoder"], shape))
    assert {values.device.type for values in series.values()} == {"cpu"}


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_are_watched_where_their_networks_are(name, models, request):
    objective, kind, shape = DENOISERS[name]
    task = task_of(objective, models[kind], shape)
    request.getfixturevalue("accelerator")
    moved(task.players[0].module)
    moved(task.model)
    assert watched(task, shape)["loss"].shape == (shape[0],)


def test_autoencoders_are_watched_where_their_networks_are(models, request):
    network = AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4)
    encoding = AutoencodingTask(Autoencoding(network=network), optimizer=OptimizerConfig(), seed=0)
    decoding = DecodingTask(
        TemporalDecoding(critic=CriticConfig(width=8, layers=2)),
        parts=models["decoder"],
        optimizer=OptimizerConfig(),
        seed=0,
    )
    request.getfixturevalue("accelerator")
    for task, shape in ((encoding, (2, 1, 3, 16, 16)), (decoding, FRAMES)):
        for module in (task.players[0].module, task.vae):
            moved(module)
        assert watched(task, shape)["psnr"].shape == (2,)


def watched(task: Task, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    batch = batch_of(shape)
    turn = Turn(step=0, rng=SampleRng(0, "heldout", batch.sample_ids))
    values = task.heldout(task.players[0].module, batch, turn)
    assert {value.device.type for value in values.values()} == {"cuda"}
    return values


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_are_shown_where_their_networks_are(name, published, request, tmp_path):
    objective, _, shape = DENOISERS[name]
    job, parts = job_of(tmp_path, objective, PROOFS[name]), published(name)
    request.getfixturevalue("accelerator")
    assert_shown(job, parts, shape, tmp_path)


@pytest.mark.parametrize(
    ("stage", "shape"), [("autoencoder", (2, 1, 3, 16, 16)), ("decoder", FRAMES)]
)
def test_autoencoders_are_shown_where_their_networks_are(stage, shape, models, request, tmp_path):
    row = preset("tiny").stage(stage)
    job = job_of(tmp_path, row.objective, row.proves, models["decoder"])
    request.getfixturevalue("accelerator")
    assert_shown(job, models["decoder"], shape, tmp_path)


def job_of(folder: Path, objective: Any, proof: Any, parts: dict[str, Path] | None = None) -> Job:
    row = preset("tiny").stage("temporal").model_dump()
    stage = Stage.model_validate(row | {"objective": objective, "proves": proof})
    video = preset("tiny").video
    return Job(stage=stage, video=video, parts=parts or {}, text_tower=folder, out=folder)


def assert_shown(job: Job, parts: dict[str, Path], shape: tuple[int, ...], folder: Path) -> None:
    null_text = torch.zeros(4, 8, device=DEVICE)
    clips = [batch_of((1, *shape[1:]))] * 2
    previews.write_preview(job, parts, clips, null_text, folder / "p.png")
    assert (folder / "p.png").exists()
