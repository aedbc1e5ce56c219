"""Where a cascade's text tower comes from: new, an OpenCLIP checkpoint, or an image model's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from videoldm_core.models.text.encoder import Activation, Output, Padding, TextConfig, TextTower
from videoldm_core.models.text.open_clip import load_open_clip, locate_open_clip
from videoldm_core.records import Record

OF_PIXELS = "of_pixels"  # the folder of a second tower, inside the first one's


class NewText(Record):
    """A tower with random weights: for cascades that train everything themselves."""

    kind: Literal["new"] = "new"
    tower: TextConfig = TextConfig()

    @property
    def width(self) -> int:
        """d: the size of one token's hidden state."""
        return self.tower.width

    def build(self) -> TextTower:
        """The tower; the same config gives the same bits."""
        return TextTower.build(self.tower)


class OpenClipText(Record):
    """The text tower of an OpenCLIP checkpoint.

    Stable Diffusion 1.x was trained with ViT-L-14 of OpenAI (last layer, padded with the end
    token), 2.x with ViT-H-14 of LAION-2B (penultimate layer, padded with zeros).
    """

    kind: Literal["open_clip"] = "open_clip"
    model: str  # "ViT-H-14"
    pretrained: str  # a checkpoint file, or a published tag
    # What a file was trained with, where OpenCLIP has its model with both: OpenAI's own weights
    # with quick_gelu, LAION's with gelu. A tag knows it.
    activation: Activation | None = None
    output: Output = "last"
    padding: Padding = "zero"
    download: bool = False  # a tag is fetched only when this asks for it

    def located(self) -> "OpenClipText":
        """The same tower from a file on this machine, downloaded where this asks for it.

        Raises:
            UserError: no such model or tag, or it cannot be downloaded.
        """
        path, activation = locate_open_clip(
            self.model, self.pretrained, activation=self.activation, download=self.download
        )
        found = {"pretrained": str(path), "activation": activation, "download": False}
        return self.model_copy(update=found)

    def build(self) -> TextTower:
        """The tower.

        Raises:
            UserError: no such model, tag or file, or the weights do not fit.
        """
        found = self.located()
        return load_open_clip(
            found.model,
            Path(found.pretrained),
            activation=found.activation,
            output=found.output,
            padding=found.padding,
        )


class ModelText(Record):
    """The text encoder that an image model of this cascade was trained with."""

    kind: Literal["of_model"] = "of_model"
    stage: str  # the row that brings the image model

    def build(self, source: Path, loras: Sequence[Path] = ()) -> TextTower:
        """The tower of the model at `source`.

        Raises:
            UserError: it is missing, damaged or of another kind; names the file and the key.
        """
        from videoldm_core.models.pretrained.stable_diffusion import load_text_tower

        return load_text_tower(source, loras=loras)


def pixel_tower(folder: Path) -> Path:
    """The tower of texts in pixel shards, given the folder of the run's tower: inside it where the
    cascade has one of its own for them, else the same.
    """
    own = folder / OF_PIXELS
    return own if own.is_dir() else folder


AnyText = Annotated[NewText | OpenClipText | ModelText, Field(discriminator="kind")]
