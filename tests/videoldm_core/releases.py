"""Folders of small untrained stages, whose temporal layers do something, and requests for them."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from videoldm_core.cascade.stage import Roles, Stage, preset
from videoldm_core.jobs.published import PublishedStage, describe_parts, write_published
from videoldm_core.models.image import UNetConfig, load_unet, load_vae
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.text.encoder import TextConfig, TextTower
from videoldm_core.models.video_decoder import temporal_decoder_for
from videoldm_core.models.video_unet import temporal_layers_for
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.sampling.request import Request

TINY = preset("tiny")
VIDEO = TINY.video.model_copy(update={"height": 16, "width": 24})
TEXT_TO_VIDEO = Roles(key_frames="temporal", decoder="decoder")
CONFIGS = {
    "temporal": TemporalConfig(),
    "predictor": TemporalConfig(context_channels=5),
    "interpolator": TemporalConfig(context_channels=5, labels=2),
}
STAGES = ("image", *CONFIGS, "decoder", "upscaler")


def publish(folder: Path, stage: Stage, parts: dict[str, Path]) -> Path:
    write_published(
        folder,
        PublishedStage(
            stage=stage,
            video=VIDEO,
            seed=0,
            fingerprint="f" * 64,
            parts=describe_parts(folder, parts, {}),
            parents={},
            data={},
            step=0,
            worth=(),
            versions={},
            started=0.0,
            finished=0.0,
            process_seconds=0.0,
        ),
    )
    return folder


def publish_all(root: Path, image_model: dict[str, Path]) -> dict[str, Path]:
    """Folders by stage name, each with the weights it made, and of the run's text tower."""
    made = {name: root / "stages" / name / "weights" for name in STAGES}
    for name, folder in image_model.items():
        shutil.copytree(folder, made["image"] / name)
    latent = {name: made["image"] / name for name in image_model}
    parts: dict[str, dict[str, Path]] = {"image": latent}
    unet = load_unet(latent["unet"])
    generator = torch.Generator().manual_seed(3)
    for name, config in CONFIGS.items():
        phi = temporal_layers_for(unet, config, seed=0)
        for parameter in phi.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        phi.save(made[name] / "temporal")
        parts[name] = latent | {"temporal": made[name] / "temporal"}
    decoder = made["decoder"] / "temporal_decoder"
    temporal_decoder_for(load_vae(latent["vae"]), seed=0).save(decoder)
    parts["decoder"] = {"vae": latent["vae"], "temporal_decoder": decoder}
    UNetConfig(
        in_channels=6,
        out_channels=3,
        widths=(16, 32),
        attention=(False, False),
        layers_per_block=1,
        text=8,
        groups=8,
        told_noise_level=True,
    ).build(0).save_pretrained(made["upscaler"] / "unet")
    ScheduleConfig(predicts="v_prediction").build().save(made["upscaler"] / "scheduler")
    parts["upscaler"] = {name: made["upscaler"] / name for name in ("unet", "scheduler")}
    TextTower.build(TextConfig(context_length=4, width=8, heads=2, layers=1)).save(root / "tower")
    stages = {name: publish(made[name].parent, TINY.stage(name), parts[name]) for name in STAGES}
    return stages | {"text_tower": root / "tower"}


def request_values(released: dict[str, Path], out: Path, **changes: Any) -> dict[str, Any]:
    """A request for 5 frames in few steps, as JSON values."""
    values = {
        "stages": {name: str(path) for name, path in released.items() if name != "text_tower"},
        "roles": TINY.roles.model_dump(),
        "text_tower": str(released["text_tower"]),
        "prompt": "a red car",
        "key_frames": 2,
        "passes": 1,
        "sampling": {"steps": 1, "interpolation_steps": 1, "upscale_steps": 1},
        "out": str(out),
    }
    return json.loads(json.dumps(values | changes, default=str))


def request_for(released: dict[str, Path], out: Path, **changes: Any) -> Request:
    return Request.model_validate(request_values(released, out, **changes))
