"""An image model that the user brings: read, checked and published like a stage that was trained.

What follows from it (latents, temporal layers, decoder) is then bound to it by digest, as to every
other parent.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import AnyGiven, LowResolution, Nothing
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.models.denoiser import check_text
from videoldm_core.models.frozen_encoder import save_in_place_of
from videoldm_core.models.pretrained.folders import read_json
from videoldm_core.models.pretrained.single_file import Predicts
from videoldm_core.models.pretrained.stable_diffusion import load_image_model
from videoldm_core.records import Record
from videoldm_core.training.train_module import Player, Turn

BOTH = (
    "the file holds averaged weights (model_ema) beside its own; its own are used, "
    "objective.ema=true takes the averaged ones"
)


class Brought(Record):
    """Nothing is minimised: the weights are those of `source`."""

    kind: Literal["brought"] = "brought"
    # image: Stable Diffusion 1.x or 2.x; upscaler: the x4-upscaler, which encodes frames itself.
    model: Literal["image", "upscaler"]
    source: str | None = None  # a diffusers folder or a single file; the run names it
    origin: str | None = None  # where a fetched one comes from: hub:OWNER/NAME@COMMIT
    loras: tuple[Path, ...] = ()  # added to the weights in this order
    ema: bool = (
        False  # of a single file with both, take the UNet's averaged weights; false: its own
    )
    predicts: Predicts | None = None  # of a single Stable Diffusion 2 file, which does not say it
    given: AnyGiven = Nothing()  # what an upscaler is given, as it was trained
    # An AutoencoderTiny folder (TAESD) that makes the latents in place of the model's encoder: many
    # times faster, a little less exact. Decoder and scale stay those of `source`.
    encoder: Path | None = None


class BroughtTask:
    """Reads and writes; see `Brought`.

    Args:
        null_text: embedding of the empty text, l d.
    """

    def __init__(self, config: Brought, *, null_text: Tensor) -> None:
        self.players: list[Player] = []
        self.frozen: list[nn.Module] = []
        assert config.source is not None, "a run is refused before it starts without its models"
        self.config, source = config, Path(config.source)
        self.model = load_image_model(
            source, loras=config.loras, predicts=config.predicts, ema=config.ema
        )
        averages = (BOTH,) if self.model.has_averages and not config.ema else ()
        self.remark = "; ".join((*averages, *self.model.remarks))
        _check_use(_Shape.of(self.model.unet.config, self.model.vae.config), config)
        check_text(self.model.unet, null_text)
        if config.model == "upscaler":
            _check_low_resolution_schedule(self.model.schedule, source)

    def heldout(self, net: Any, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """Nothing trains, so nothing is watched."""
        return {}

    def finish(self, batches: Iterator[Batch]) -> None:
        """Nothing follows: the model brings the scale of its latents."""

    def save(self, folder: Path) -> list[str]:
        """Writes unet/, scheduler/ and vae/ (of an upscaler own_vae/) as diffusers does."""
        names = self.model.save(folder)
        if self.config.model == "upscaler":
            (folder / "vae").rename(folder / "own_vae")
            names = ["own_vae" if name == "vae" else name for name in names]
        if self.config.encoder is not None:
            save_in_place_of(self.model.vae, self.config.encoder, folder / "encoder")
            names.append("encoder")
        return names


def check_folder(config: Brought) -> None:
    """Refuses a diffusers folder that cannot be used, before a weight is read; no other source.

    Raises:
        UserError: a config.json is missing or damaged, or describes a model for another use.
    """
    folder = Path(config.source or "")
    if config.source is None or not folder.is_dir():
        return
    why = "a diffusers folder describes its networks there"
    unet, vae = (read_json(folder / part / "config.json", why) for part in ("unet", "vae"))
    _check_use(_Shape.of(unet, vae), config)


class _Shape(NamedTuple):
    """What of a model decides what it can be used for."""

    takes: int  # channels
    is_told_level: bool  # of noise, as upscalers are
    latents: int  # channels
    frames: int  # channels
    shrinks: int  # how many times smaller than frames, per side, latents are

    @classmethod
    def of(cls, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> "_Shape":
        """From configurations, with diffusers' defaults for what they leave out."""
        told = (unet.get("num_class_embeds"), unet.get("class_embed_type"))
        widths = vae.get("block_out_channels", (64,))
        if not isinstance(widths, Sequence):
            raise UserError(
                f"An autoencoder's config.json has block_out_channels {widths!r}; expected a list "
                "of numbers: get the folder again."
            )
        return cls(
            takes=unet.get("in_channels", 4),
            is_told_level=told != (None, None),
            latents=vae.get("latent_channels", 4),
            frames=vae.get("in_channels", 3),
            shrinks=2 ** (len(widths) - 1),
        )


def _check_use(shape: _Shape, config: Brought) -> None:
    """Refuses an image model as upscaler, an upscaler as image model, and inpainting models."""
    is_image = config.model == "image"
    channels = shape.latents + (0 if is_image else shape.frames)
    if shape.takes != channels or shape.is_told_level == is_image:
        like = "Stable Diffusion 1.x or 2.x" if is_image else "the x4-upscaler"
        raise UserError(
            f"{config.source!r} is not like {like}: its UNet takes {shape.takes} channels, "
            f"expected {channels}, and is {'' if shape.is_told_level else 'not '}told a noise "
            "level; inpainting and depth models cannot be used; name another model."
        )
    factor = LowResolution().factor
    if not is_image and shape.shrinks != factor:
        raise UserError(
            f"The autoencoder of {config.source!r} shrinks frames {shape.shrinks} times, "
            f"an upscaler's {factor} times; name the x4-upscaler."
        )


def _check_low_resolution_schedule(schedule: NoiseSchedule, source: Path) -> None:
    """An upscaler's folder says how its low resolution was noised: we use one schedule for both."""
    folder = source / "low_res_scheduler"
    if folder.is_dir() and not NoiseSchedule.load(folder).has_levels_of(schedule):
        raise UserError(
            f"{str(folder)!r} has other noise levels than the scheduler beside it; expected the "
            "same, as in the x4-upscaler: name another upscaler."
        )
