"""An image model in one file, laid out as its authors do (CompVis, Stability): what shape it has.

The layout carries no configuration, so the shape is read off the tensors; what tensors cannot say
(heads, what the network predicts) follows from the published families, or is asked for.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor

from videoldm_core.diffusion.schedule import MOST_TIMESTEPS, NoiseSchedule
from videoldm_core.errors import UserError, reason_of
from videoldm_core.models.pretrained.described import check_described
from videoldm_core.models.pretrained.folders import on_meta
from videoldm_core.models.weights import fill

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
AVERAGE = "model_ema."  # before a UNet's averaged weight, whose name follows without dots
BUFFERS = ("betas", "alphas_cumprod")
HEADS = 8  # SD 1.x and x4-upscaler; SD 2.x has heads of 64 channels instead
HEAD_WIDTH = 64
SCALES = {4: 0.18215, 3: 0.08333}  # of latents, by levels of the autoencoder
MOST_TENSORS = 10_000  # of one part; Stable Diffusion's UNet has 686
_NUMBER = r"(\d{1,3})"  # of a block, in a tensor's name
Predicts = Literal["epsilon", "v_prediction"]


def is_wanted(name: str) -> bool:
    """Whether a tensor of the file is of the image model; those of optimizers are not."""
    return name.startswith((UNET, VAE, TEXT, AVERAGE)) or name in BUFFERS


def has_averages(weights: Mapping[str, Tensor]) -> bool:
    """Whether the file holds an exponential moving average of the UNet beside the UNet itself."""
    return any(name.startswith(f"{AVERAGE}diffusion_model") for name in weights)


def with_averages(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The file's tensors with the UNet's averaged ones in place of its own.

    Raises:
        UserError: the file holds none, or not all; names the first.
    """
    averaged = dict(weights)
    for name in weights:
        if name.startswith(UNET):
            average = AVERAGE + name.removeprefix("model.").replace(".", "")
            if average not in weights:
                raise UserError(
                    f"{where} lacks {average!r}, the averaged {name!r}; leave ema= out to read its "
                    "own weights."
                )
            averaged[name] = weights[average]
    return averaged


def unet_of(weights: Mapping[str, Tensor], *, where: str) -> UNet2DConditionModel:
    """The UNet of a file.

    Raises:
        UserError: the file holds none, or one of another kind; names the first wrong key.
    """
    own = _own(weights, UNET, where=where)
    if "input_blocks.0.0.weight" not in own:
        raise UserError(
            f"{where} holds no {UNET}input_blocks.0.0.weight; expected an image model in one file "
            "as CompVis and Stability publish them, or give a diffusers folder."
        )
    config = unet_config_of(own, where=where)
    named = {f"{UNET}{name}": tensor for name, tensor in own.items()}
    return _filled(UNet2DConditionModel, config, named, convert_ldm_unet_checkpoint, where=where)


def unet_config_of(own: Mapping[str, Tensor], *, where: str) -> dict[str, Any]:
    """diffusers' configuration of a UNet given by its tensors without prefix.

    Raises:
        UserError: a tensor that shows the shape is missing; names it.
    """
    levels = _levels(own, where)
    readers = [name for name in own if name.endswith("attn2.to_k.weight")]
    projections = [own[f"{block}.proj_in.weight"] for _, _, block in levels if block]
    if not projections or not readers:
        raise UserError(
            f"{where} holds a UNet without text attention, which no Stable Diffusion is; "
            "give a text-conditioned image model."
        )
    text = _side(own, readers[0], 1, where=where)
    widths = [width for width, _, _ in levels]
    attention = [block is not None for _, _, block in levels]
    is_linear = projections[0].ndim == 2
    classes = own.get("label_emb.weight")
    by_width = is_linear and classes is None
    return {
        "in_channels": _side(own, "input_blocks.0.0.weight", 1, where=where),
        "out_channels": _side(own, "out.2.weight", 0, where=where),
        "block_out_channels": widths,
        "layers_per_block": levels[0][1],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        "cross_attention_dim": text,
        # diffusers calls the number of heads so
        "attention_head_dim": [max(1, w // HEAD_WIDTH) for w in widths] if by_width else HEADS,
        "use_linear_projection": is_linear,
        "only_cross_attention": [
            block is not None and _reads_text_alone(own, block, width, text, where=where)
            for width, _, block in levels
        ],
        "num_class_embeds": None
        if classes is None
        else _side(own, "label_emb.weight", 0, where=where),
    }


def vae_of(weights: Mapping[str, Tensor], *, where: str) -> AutoencoderKL:
    """The autoencoder of a file.

    Raises:
        UserError: the file holds none, or one of another kind; names the first wrong key.
    """
    own = _own(weights, VAE, where=where)
    if "encoder.conv_in.weight" not in own or "post_quant_conv.weight" not in own:
        raise UserError(
            f"{where} holds no {VAE}encoder; expected an image model with its KL autoencoder: "
            "give the full checkpoint, not one pruned of it."
        )
    blocks = _numbers(own, rf"encoder\.down\.{_NUMBER}\.block\.{_NUMBER}\.conv2\.weight")
    levels = 1 + max((level for level, _ in blocks), default=0)
    if levels not in SCALES:
        raise UserError(
            f"{where}: its autoencoder has {levels} levels, and the file does not say by what its "
            f"latents are scaled; expected {' or '.join(map(str, SCALES))}, or a diffusers folder."
        )
    config = {
        "in_channels": _side(own, "encoder.conv_in.weight", 1, where=where),
        "out_channels": _side(own, "decoder.conv_out.weight", 0, where=where),
        "block_out_channels": [
            _side(own, f"encoder.down.{i}.block.0.conv2.weight", 0, where=where)
            for i in range(levels)
        ],
        "layers_per_block": 1 + max(block for _, block in blocks),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": _side(own, "post_quant_conv.weight", 1, where=where),
        "scaling_factor": SCALES[levels],
    }
    return _filled(AutoencoderKL, config, dict(weights), convert_ldm_vae_checkpoint, where=where)


def schedule_of(
    weights: Mapping[str, Tensor], *, predicts: Predicts | None, where: str
) -> NoiseSchedule:
    """The noise schedule: betas from the file where it carries them, else those of its family.

    Args:
        predicts: what the network was trained to predict; None where its family leaves no choice.

    Raises:
        UserError: Stable Diffusion 2 files do not say what they predict, and nobody else did.
    """
    config = unet_config_of(_own(weights, UNET, where=where), where=where)
    is_upscaler = config["num_class_embeds"] is not None
    is_second = config["use_linear_projection"] and not is_upscaler
    if predicts is None and is_second:
        raise UserError(
            f"{where} is a Stable Diffusion 2 model, whose file does not say whether it predicts "
            "epsilon (512 px) or v_prediction (768 px); set predicts= to one of them."
        )
    betas = weights.get("betas")
    if betas is not None and (betas.ndim != 1 or len(betas) > MOST_TIMESTEPS):
        raise UserError(
            f"{where}: 'betas' has shape {tuple(betas.shape)}, expected one value for each of at "
            f"most {MOST_TIMESTEPS} noise levels; get the file again."
        )
    return NoiseSchedule(
        {
            "num_train_timesteps": 1000 if betas is None else len(betas),
            "beta_schedule": "scaled_linear",  # what CompVis calls linear
            "beta_start": 1e-4 if is_upscaler else 0.00085,
            "beta_end": 0.02 if is_upscaler else 0.012,
            "trained_betas": None if betas is None else betas.double().tolist(),
            "prediction_type": predicts or ("v_prediction" if is_upscaler else "epsilon"),
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "set_alpha_to_one": False,
        },
        where=f"The noise schedule of {where}",
    )


def _filled(  # noqa: PLR0913 - two call sites
    kind: Any,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    convert: Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Tensor]],
    *,
    where: str,
) -> Any:
    """A module of this kind that holds `tensors`, in float32; never initialised at random.

    Raises:
        UserError: they do not fit, or are not laid out as the kind's are.
    """
    check_described(config, where=where)
    module = on_meta(kind, config, where=where)
    try:
        converted = convert(tensors, config)
    except Exception as error:  # what diffusers raises depends on which tensor is missing
        raise UserError(
            f"{where} is not laid out as an {kind.__name__} of CompVis and Stability is "
            f"({type(error).__name__}: {reason_of(error)}); get the file again."
        ) from error
    fill(module, converted, where=where)
    return module.eval().requires_grad_(False)


def _own(weights: Mapping[str, Tensor], prefix: str, *, where: str) -> dict[str, Tensor]:
    """The tensors of one part, without its prefix."""
    own = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    if len(own) > MOST_TENSORS:
        raise UserError(
            f"{where} holds {len(own)} tensors of {prefix!r}, expected at most {MOST_TENSORS}; get "
            "the file again."
        )
    return own


def _side(own: Mapping[str, Tensor], name: str, place: int, *, where: str) -> int:
    """How long one side of a tensor is."""
    if name not in own:
        raise UserError(f"{where} lacks {name!r}, which shows its shape; get the file again.")
    shape = tuple(own[name].shape)
    if len(shape) <= place or 0 in shape:
        raise UserError(f"{where}: {name!r} has shape {shape}, of no weight; get the file again.")
    return shape[place]


def _levels(own: Mapping[str, Tensor], where: str) -> list[tuple[int, int, str | None]]:
    """Per resolution: width, ResBlocks, and the first block with attention, if any."""
    last = max((i for i, *_ in _numbers(own, rf"input_blocks\.{_NUMBER}\..+")), default=0)
    levels: list[tuple[int, int, str | None]] = []
    starts_level = True
    for i in range(1, last + 1):
        weight = f"input_blocks.{i}.0.out_layers.3.weight"
        if weight not in own:  # a downsampler
            starts_level = True
            continue
        if starts_level:
            levels.append((0, 0, None))
        width, count, block = levels[-1]
        name = f"input_blocks.{i}.1"
        has_attention = f"{name}.proj_in.weight" in own
        width = _side(own, weight, 0, where=where)
        levels[-1] = (width, count + 1, block or (name if has_attention else None))
        starts_level = False
    return levels


def _reads_text_alone(
    own: Mapping[str, Tensor], block: str, width: int, text: int, *, where: str
) -> bool:
    keys = _side(own, f"{block}.transformer_blocks.0.attn1.to_k.weight", 1, where=where)
    return keys == text and text != width


def _numbers(own: Mapping[str, Tensor], pattern: str) -> list[tuple[int, ...]]:
    matches = (re.fullmatch(pattern, name) for name in own)
    return [tuple(int(group) for group in match.groups()) for match in matches if match]
