"""Folders of small untrained stages, whose temporal layers do something, and requests for them."""

import json
from pathlib import Path
from typing import Any

import torch

from videoldm_core.cascade import Roles, Stage, preset
from videoldm_core.generate import Request
from videoldm_core.models.image import UNetConfig, load_unet, load_vae
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.text import TextConfig, TextTower
from videoldm_core.models.video_decoder import temporal_decoder_for
from videoldm_core.models.video_unet import temporal_layers_for
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.training.published import PublishedStage, describe_parts, write_published

TINY = preset("tiny")
VIDEO = TINY.video.model_copy(update={"height": 16, "width": 24})
TEXT_TO_VIDEO = Roles(key_frames="temporal", decoder="decoder")
CONFIGS = {
    "temporal": TemporalConfig(),
    "predictor": TemporalConfig(context_channels=5),
    "interpolator": TemporalConfig(context_channels=5, labels=2),
}


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
    """Folders by stage name, and of the run's text tower."""
    unet = load_unet(image_model["unet"])
    latent = {name: image_model[name] for name in ("unet", "scheduler", "vae")}
    parts: dict[str, dict[str, Path]] = {"image": latent}
    generator = torch.Generator().manual_seed(3)
    for name, config in CONFIGS.items():
        phi = temporal_layers_for(unet, config, seed=0)
        for parameter in phi.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        phi.save(root / name / "temporal")
        parts[name] = latent | {"temporal": root / name / "temporal"}
    temporal_decoder_for(load_vae(image_model["vae"]), seed=0).save(root / "temporal_decoder")
    parts["decoder"] = {
        "vae": image_model["vae"],
        "temporal_decoder": root / "temporal_decoder",
    }
    UNetConfig(
        in_channels=6,
        out_channels=3,
        widths=(16, 32),
        attention=(False, False),
        layers_per_block=1,
        text=8,
        groups=8,
        told_noise_level=True,
    ).build(0).save_pretrained(root / "upscaler" / "unet")
    ScheduleConfig(predicts="v_prediction").build().save(root / "upscaler" / "scheduler")
    parts["upscaler"] = {n: root / "upscaler" / n for n in ("unet", "scheduler")}
    TextTower.build(TextConfig(context_length=4, width=8, heads=2, layers=1)).save(root / "tower")
    stages = {
        name: publish(root / "stages" / name, TINY.stage(name), one) for name, one in parts.items()
    }
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
