"""Bounds of what a diffusers config.json may describe, held before any module is built from it.

Sizes of single matrices need none: they are compared with the weights on the meta device, where
they cost nothing. What is repeated costs time there too.
"""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from videoldm_core.errors import UserError
from videoldm_core.records import problem_of

MOST_LEVELS = 16
MOST_BLOCKS = 1000  # over all levels: Stable Diffusion has 8 or fewer, its largest successor 60
MOST_CHANNELS = 1 << 20

Channels = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
Repeats = Annotated[int, Field(ge=0, le=MOST_BLOCKS)]
PerLevel = Annotated[tuple[Repeats, ...], Field(max_length=MOST_LEVELS)]
# In up blocks of some models a level says it for each of its layers.
PerLayer = Annotated[tuple[Repeats | PerLevel, ...], Field(max_length=MOST_LEVELS)]
Kinds = Annotated[tuple[Annotated[str, Field(max_length=100)], ...], Field(max_length=MOST_LEVELS)]
Widths = Annotated[tuple[Channels, ...], Field(max_length=MOST_LEVELS)]


class _Described(BaseModel):
    """The part of a configuration that decides how often something is repeated, and the scale."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    block_out_channels: Widths = ()
    encoder_block_out_channels: Widths = ()
    decoder_block_out_channels: Widths = ()
    down_block_types: Kinds = ()
    up_block_types: Kinds = ()
    in_channels: Channels = 4
    out_channels: Channels = 4
    latent_channels: Channels = 4
    layers_per_block: Repeats | PerLevel = 1
    transformer_layers_per_block: Repeats | PerLayer = 1
    reverse_transformer_layers_per_block: Repeats | PerLayer | None = None
    num_encoder_blocks: PerLevel = ()
    num_decoder_blocks: PerLevel = ()
    scaling_factor: float = Field(default=0.18215, gt=0, le=1000)

    def blocks(self) -> int:
        """At most how many blocks the module has on its way down, and as many on its way up."""
        levels = max(1, len(self.down_block_types), len(self.block_out_channels))
        inner = max(
            _largest(self.transformer_layers_per_block),
            _largest(self.reverse_transformer_layers_per_block or 1),
        )
        tiny = max(sum(self.num_encoder_blocks), sum(self.num_decoder_blocks))
        return max(tiny, levels * _largest(self.layers_per_block) * max(1, inner))


def check_described(config: Mapping[str, Any], *, where: str) -> None:
    """Refuses a configuration that would take hours to build, or whose latents have no scale.

    Raises:
        UserError: names the first value out of bounds.
    """
    try:
        described = _Described.model_validate(dict(config))
    except ValidationError as error:
        problem = problem_of(_Described, error).removesuffix(".")
        raise UserError(f"{where}: {problem}; get the folder again.") from None
    if described.blocks() > MOST_BLOCKS:
        raise UserError(
            f"{where} describes a network of {described.blocks()} blocks, expected at most "
            f"{MOST_BLOCKS}; get the folder again."
        )


def scale_of(config: Mapping[str, Any]) -> float:
    """What latents are multiplied by, of a configuration that was checked."""
    return _Described.model_validate(dict(config)).scaling_factor


def known_settings(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `kind` takes of a configuration; diffusers would print the rest as a warning."""
    known = inspect.signature(kind).parameters
    return {n: value for n, value in config.items() if n in known or n.startswith("_")}


def _largest(repeats: Any) -> int:
    if isinstance(repeats, tuple):
        return max((_largest(inner) for inner in repeats), default=1)
    return int(repeats)
