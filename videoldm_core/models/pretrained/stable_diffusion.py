"""A pretrained image model as people have it, brought to the parts that stages inherit (§3.1).

Either a diffusers folder (Stable Diffusion 1.x, 2.x, the x4-upscaler, or a fine-tune of one), or
one file in the layout of its authors. LoRA files are added to the weights they belong to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel

from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.models.image import load_unet, load_vae
from videoldm_core.models.pretrained import single_file
from videoldm_core.models.pretrained.lora import add_lora
from videoldm_core.models.pretrained.lora_file import embeddings_in
from videoldm_core.models.pretrained.single_file import Predicts
from videoldm_core.models.text.clip import load_clip_text, tower_of_file
from videoldm_core.models.text.encoder import TextTower
from videoldm_core.models.weights import read_checkpoint


@dataclass(frozen=True, kw_only=True)
class ImageModel:
    """A text-to-image latent diffusion model, whole, in float32."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    schedule: NoiseSchedule
    has_averages: bool = False  # its file holds an average of the UNet's weights too
    remarks: tuple[str, ...] = ()  # what of its LoRA files was not used; no full stops

    def save(self, folder: Path) -> list[str]:
        """Writes unet/, vae/ and scheduler/ as diffusers does; returns their names."""
        self.unet.save_pretrained(folder / "unet")
        self.vae.save_pretrained(folder / "vae")
        self.schedule.save(folder / "scheduler")
        return ["unet", "vae", "scheduler"]


def load_image_model(
    source: Path,
    *,
    loras: Sequence[Path] = (),
    predicts: Predicts | None = None,
    ema: bool = False,
) -> ImageModel:
    """Reads an image model from a diffusers folder or a single file; nothing is downloaded.

    Args:
        loras: .safetensors files of LoRA fine-tunes, added in this order.
        predicts: what a single Stable Diffusion 2 file was trained to predict; folders say it.
        ema: take the averaged weights of a single file's UNet, not its own.

    Raises:
        UserError: something is missing, damaged or of another kind; names the file and the key.
    """
    if source.is_dir():
        model = _from_folder(source, predicts, ema)
    else:
        model = _from_file(source, predicts, ema)
    for lora in loras:
        if not add_lora(model.unet.state_dict(), lora, part="unet"):
            raise UserError(
                f"{str(lora)!r} holds no LoRA matrices for the unet; expected names like "
                "'unet.….lora_A.weight' or 'lora_unet_….lora_down.weight'."
            )
    return replace(model, remarks=tuple(filter(None, map(_left_out, loras))))


def load_text_tower(source: Path, *, loras: Sequence[Path] = ()) -> TextTower:
    """The text tower of the same folder or file, with what the LoRA files hold for it.

    Raises:
        UserError: it is missing, damaged or of another kind; names the file and the key.
    """
    if source.is_dir():
        return load_clip_text(source, loras=loras)
    weights = read_checkpoint(source, lambda name: name.startswith(single_file.TEXT))
    own = {name.removeprefix(single_file.TEXT): tensor for name, tensor in weights.items()}
    return tower_of_file(own, where=repr(str(source)), loras=loras)


def _left_out(lora: Path) -> str:
    """A remark on what a LoRA file holds besides the LoRA; "" where that is nothing."""
    names = embeddings_in(lora)
    if not names:
        return ""
    which = ", ".join(map(repr, names))
    return (
        f"the LoRA of {str(lora)!r} is added without the textual inversions in the file ({which}): "
        "a prompt with these words means no more than it does without the file"
    )


def _from_file(source: Path, predicts: Predicts | None, ema: bool) -> ImageModel:
    weights, where = read_checkpoint(source, single_file.is_wanted), repr(str(source))
    has_averages = single_file.has_averages(weights)
    if ema:
        weights = single_file.with_averages(weights, where=where)
    return ImageModel(
        unet=single_file.unet_of(weights, where=where),
        vae=single_file.vae_of(weights, where=where),
        schedule=single_file.schedule_of(weights, predicts=predicts, where=where),
        has_averages=has_averages,
    )


def _from_folder(source: Path, predicts: Predicts | None, ema: bool) -> ImageModel:
    if ema:
        raise UserError(
            f"{str(source)!r} is a folder, which holds one set of weights; leave ema= out: it "
            "chooses between the two of a single file."
        )
    schedule = NoiseSchedule.load(source / "scheduler")
    if predicts is not None and predicts != schedule.predicts:
        raise UserError(
            f"{str(source / 'scheduler')!r} says that the model predicts {schedule.predicts}, not "
            f"{predicts}; leave predicts= out: a folder knows it."
        )
    return ImageModel(
        unet=load_unet(source / "unet"), vae=load_vae(source / "vae"), schedule=schedule
    )
