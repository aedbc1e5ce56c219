"""The networks of a stage as shapes alone (on PyTorch's meta device), before anything is trained.

From the table, and the config.json files of models that the user brings. Takes no memory, however
large the networks are, and reads no weights.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.cascade.stage import Preset, Stage, VideoFormat
from videoldm_core.diffusion.labels_boxes import nothing_told
from videoldm_core.errors import UserError
from videoldm_core.models.condition_tokens import ConditionedUNet, condition_tokens_for
from videoldm_core.models.discriminator import PatchDiscriminator2D, PatchDiscriminator3D
from videoldm_core.models.image import shrinking
from videoldm_core.models.perceptual import Perceptual, PerceptualConfig
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_of_shape
from videoldm_core.objectives.autoencoding import Autoencoding, ReconstructingAutoencoder
from videoldm_core.objectives.decoding import TemporalDecoding
from videoldm_core.objectives.denoising import Denoising
from videoldm_core.objectives.pretrained import Brought
from videoldm_core.training.train_module import trainable_parameters

# part -> what its JSON file says of its shape: unet, vae, own_vae, tokens
Configs = Mapping[str, Mapping[str, Any]]
TOKENS = 77  # of a text, as CLIP's towers have


@dataclass(frozen=True)
class StageNetworks:
    """What one stage holds, on the meta device; what trains requires gradients."""

    players: dict[str, nn.Module] = field(default_factory=dict)
    beside: tuple[nn.Module, ...] = ()  # frozen, used outside the players, never sharded
    perceptual: Perceptual | None = None  # one of them: what the first player's error looks at
    makes: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # configs of its own parts


def table_on_meta(table: Preset) -> Iterator[tuple[Stage, Configs, "StageNetworks | UserError"]]:
    """Every stage, the configs it starts from and its networks, or why their size is not known."""
    parts: dict[str, Configs] = {}
    for stage in table.stages:
        inherited: Configs = {}
        for parent in stage.starts_from:
            inherited = {**inherited, **parts[parent]}
        made: Configs = {}
        try:
            networks = networks_on_meta(stage, inherited)
        except UserError as error:
            yield stage, inherited, error
        else:
            made = networks.makes
            yield stage, inherited, networks
        parts[stage.name] = {**inherited, **made}


def networks_on_meta(stage: Stage, inherited: Configs) -> StageNetworks:
    """The networks that `stage` trains and holds.

    Args:
        inherited: configs of the parts it starts from.

    Raises:
        UserError: a part that it needs has no config.
    """
    objective = stage.objective
    if isinstance(objective, Brought):
        return StageNetworks(makes=_brought_configs(stage.name, objective))
    with torch.device("meta"):
        if isinstance(objective, Autoencoding):
            return _autoencoding(stage, objective)
        if isinstance(objective, Denoising):
            return _denoising(stage, objective, inherited)
        return _decoding(stage, objective, inherited)


def inputs_on_meta(
    module: nn.Module, stage: Stage, video: VideoFormat, inherited: Configs, *, clips: int
) -> dict[str, Tensor]:
    """What one training step gives to a player's module, by argument, on the meta device."""
    height, width = stored_size(stage, video)
    if isinstance(module, VideoUNet | ConditionedUNet):
        factor = _shrinking_of(stage, inherited)
        return _denoiser_inputs(module, clips, stage.frames, (height // factor, width // factor))
    frames = clips * stage.frames
    with torch.device("meta"):
        if isinstance(module, ReconstructingAutoencoder):
            factor, channels = shrinking(module.vae), module.vae.config.latent_channels
            noise = torch.empty(frames, channels, height // factor, width // factor)
            return {"frames": torch.empty(frames, 3, height, width), "noise": noise}
        if isinstance(module, VideoDecoder):
            channels = module.decoder.conv_in.in_channels
            factor = 2 ** (len(module.decoder.up_blocks) - 1)
            size = (height // factor, width // factor)
            return {"latents": torch.empty(clips, stage.frames, channels, *size)}
        # A critic judges real and made samples at once.
        if isinstance(module, PatchDiscriminator2D):
            return {"frames": torch.empty(2 * frames, 3, height, width)}
        return {"video": torch.empty(2 * clips, stage.frames, 3, height, width)}


def _shrinking_of(stage: Stage, inherited: Configs) -> int:
    """How many times smaller than frames, per side, is what a stage denoises; 1 for pixels."""
    part = "vae" if stage.reads == "latents" else "own_vae"
    if part not in inherited:
        return 1
    return 2 ** (len(inherited[part]["block_out_channels"]) - 1)


def stored_size(stage: Stage, video: VideoFormat) -> tuple[int, int]:
    """Height and width in pixels of the frames that a stage sees."""
    factor = video.upscale if stage.full_size else 1
    if stage.crop is not None:
        return stage.crop, stage.crop
    return video.height * factor, video.width * factor


def _denoiser_inputs(
    module: VideoUNet | ConditionedUNet, clips: int, frames: int, size: tuple[int, int]
) -> dict[str, Tensor]:
    net = module.net if isinstance(module, ConditionedUNet) else module
    config, phi = net.unet.config, net.temporal
    numbers = torch.empty(clips, dtype=torch.long, device="meta")
    with torch.device("meta"):
        given = {
            "noisy": torch.empty(clips, frames, config.in_channels, *size),
            "timesteps": numbers,
            "text": torch.empty(clips, TOKENS, config.cross_attention_dim),
        }
        if config.num_class_embeds or config.class_embed_type:
            given["noise_level"] = numbers
        if phi is not None and phi.config.context_channels:
            given["context"] = torch.empty(clips, frames, phi.config.context_channels, *size)
        if phi is not None and phi.config.told_context_noise:
            given["context_noise"] = numbers
        if phi is not None and phi.config.labels:
            given["label"] = numbers
    if isinstance(module, ConditionedUNet):
        told = nothing_told(module.tokens.vocabulary, clips).to(torch.device("meta"))
        given |= {"labels": told.labels, "boxes": told.boxes}
    return given


def _autoencoding(stage: Stage, objective: Autoencoding) -> StageNetworks:
    vae = objective.network.build(0)
    net = ReconstructingAutoencoder(vae, checkpointing=stage.checkpointing)
    trainable_parameters(net, [vae])
    players: dict[str, nn.Module] = {"autoencoder": net}
    if objective.critic is not None:
        players["critic"] = PatchDiscriminator2D(objective.critic)
    perceptual = _perceptual(objective.perceptual, stage)
    beside = () if perceptual is None else (perceptual,)
    return StageNetworks(players, beside, perceptual, {"vae": dict(vae.config)})


def _denoising(stage: Stage, objective: Denoising, inherited: Configs) -> StageNetworks:
    unet = (
        objective.unet.build(0)
        if objective.unet
        else _from_config(UNet2DConditionModel, "unet", stage, inherited)
    )
    config = objective.temporal_config(
        frames=stage.frames, channels=unet.config.out_channels, strides=len(stage.strides)
    )
    temporal = temporal_layers_of_shape(unet, config) if config else None
    video = VideoUNet(unet, temporal, checkpointing=stage.checkpointing)
    makes: dict[str, Mapping[str, Any]] = {"unet": dict(unet.config)}
    vocabulary = objective.tokens
    if vocabulary is None and "tokens" in inherited:
        vocabulary = Vocabulary.model_validate(inherited["tokens"])
    tokens, net = None, video
    if vocabulary is not None:
        makes["tokens"] = vocabulary.model_dump()
        tokens = condition_tokens_for(unet, vocabulary, seed=0)
        net = ConditionedUNet(video, tokens)
    modules = {"unet": unet, "tokens": tokens, "temporal": temporal}
    trainable_parameters(net, [m for name in stage.trains if (m := modules[name]) is not None])
    beside = ()
    if "own_vae" in inherited:
        beside = (_from_config(AutoencoderKL, "own_vae", stage, inherited),)
    return StageNetworks({"denoiser": net}, beside, makes=makes)


def _decoding(stage: Stage, objective: TemporalDecoding, inherited: Configs) -> StageNetworks:
    vae = _from_config(AutoencoderKL, "vae", stage, inherited)
    temporal = temporal_decoder_for(vae, seed=0)
    decoder = VideoDecoder(vae, temporal, checkpointing=stage.checkpointing)
    trainable_parameters(decoder, [decoder.decoder, temporal])
    critic = PatchDiscriminator3D(objective.critic)
    perceptual = _perceptual(objective.perceptual, stage)
    beside = (vae.encoder,) if perceptual is None else (vae.encoder, perceptual)
    return StageNetworks({"decoder": decoder, "critic": critic}, beside, perceptual)


def _perceptual(config: PerceptualConfig | None, stage: Stage) -> Perceptual | None:
    return None if config is None else Perceptual(checkpointing=stage.checkpointing)


def _from_config(kind: Any, part: str, stage: Stage, inherited: Configs) -> Any:
    if part not in inherited:
        raise UserError(
            f"The size of the {part} that the stage {stage.name!r} starts from is not known: "
            f"{', '.join(stage.starts_from) or 'no stage'} does not say it."
        )
    try:
        return kind.from_config(dict(inherited[part]))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"The config of the {part} that the stage {stage.name!r} starts from describes no "
            f"{kind.__name__}: {reason}; expected a diffusers config.json."
        ) from None


def _brought_configs(name: str, objective: Brought) -> dict[str, Mapping[str, Any]]:
    """Configs of a brought model.

    Raises:
        UserError: it is not a folder on this machine, or its configs cannot be read.
    """
    folder = Path(objective.source or "")
    if objective.source is None or not folder.is_dir():
        named = "no model is named" if objective.source is None else f"{objective.source!r} is not"
        raise UserError(
            f"The size of {name!r} is known where pretrained.{name} names a diffusers folder; "
            f"{named}{'' if objective.source is None else ' one on this machine'}."
        )
    parts = {"unet": "unet", "vae": "vae" if objective.model == "image" else "own_vae"}
    configs = {}
    for inside, part in parts.items():
        path = folder / inside / "config.json"
        try:
            configs[part] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"Cannot read {str(path)!r}: {error}; expected a diffusers folder."
            ) from None
    return configs
