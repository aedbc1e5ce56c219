"""phi: all temporal layers of one video model, in one module that is saved alone (§3.1).

Keyed by place in the UNet, so the same phi goes under any image model of the same shape: a
DreamBooth fine-tune is another backbone under the same file.
"""

from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from videoldm_core.errors import UserError
from videoldm_core.models.sites import Place
from videoldm_core.models.temporal_blocks import (
    TemporalResBlock,
    TemporalTransformer,
    sinusoid,
    zeroed,
)
from videoldm_core.models.weights import check_keys, read_tensors
from videoldm_core.records import Record, load_record

CONTEXT_WIDTH = 32
LEVEL_WIDTH = 32  # of the sinusoid that tells the noise on the given frames


class TemporalConfig(Record):
    """What phi is made of beyond the shape of the image model it stands in."""

    # One alpha per frame of clips this long (driving); None: scalar.
    frames_in_alpha: int | None = Field(default=None, ge=1, le=10_000)
    text: bool = True  # cross-attention to the text in the temporal transformers
    # Channels of c_S = (m * z, m); 0: not given any context (§3.2).
    context_channels: int = Field(default=0, ge=0, le=1000)
    # How many frames a direct path from c_S to the output reaches; 0: there is none (the paper).
    # Deviation: a model that is small and briefly trained copies what it is given from the start.
    context_reach: int = Field(default=0, ge=0, le=1000)
    # Values of the label the temporal layers see (interpolator: 2 passes); 0: none.
    labels: int = Field(default=0, ge=0, le=1000)
    told_context_noise: bool = False  # of what level the noise on the given frames is (§3.3)


class ContextPyramid(nn.Module):
    """The learned downsampling of c_S: one thin map per UNet resolution (§3.2; < 0.8 M parameters).

    [m * z, m] (b t) c+1 h w  ->  maps (b t) 32 h/2^l w/2^l for level l = 0, 1, ...
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, CONTEXT_WIDTH, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(CONTEXT_WIDTH, CONTEXT_WIDTH, 3, stride=2, padding=1)
            for _ in range(levels - 1)
        )

    def forward(self, given: Tensor) -> list[Tensor]:
        """Maps (b t) c+1 h w to one map per level, finest first."""
        maps = [F.silu(self.first(given))]
        for down in self.down:
            maps.append(F.silu(down(maps[-1])))
        return maps


class ContextShortcut(nn.Module):
    """Lets c_S scale and shift the output, by a convolution over time and by the diffusion time.

    out (1 + g_1(tau) a) + g_2(tau) b,   (a, b) = Conv_(2r+1,1,1)([m * z, m]),
    g_i = 8 (1 + W_i silu(emb));   W, Conv start at 0
    """

    # Copying takes weights near 1, which Adam would otherwise need hundreds of steps to reach.
    GAIN = 8.0

    def __init__(self, channels: int, *, reach: int, embedding: int) -> None:
        super().__init__()
        both = 2 * (channels - 1)
        self.conv = zeroed(nn.Conv3d(channels, both, (2 * reach + 1, 1, 1), padding=(reach, 0, 0)))
        self.gate = zeroed(nn.Linear(embedding, both))

    def forward(self, out: Tensor, given: Tensor, embedding: Tensor) -> Tensor:
        """Maps the output b t c h w to the same shape.

        Args:
            given: c_S, b t c+1 h w.
            embedding: of the diffusion time, (b t) e.
        """
        gate = self.GAIN * (1 + self.gate(F.silu(embedding)))
        read = self.conv(given.transpose(1, 2)).transpose(1, 2)
        scale, shift = (read * gate.view(*given.shape[:2], -1, 1, 1)).chunk(2, dim=2)
        return out * (1 + scale) + shift


class ContextNoise(nn.Module):
    """Tells the temporal layers how noisy the given frames are; starts by telling nothing."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.linear = zeroed(nn.Linear(LEVEL_WIDTH, embedding))

    def forward(self, timesteps: Tensor) -> Tensor:
        """Maps levels (b) to what is added to the embedding of the diffusion time, b e."""
        return self.linear(sinusoid(timesteps, LEVEL_WIDTH, self.linear.weight))


class TemporalLayers(nn.Module):
    """All temporal layers of a video UNet.

    Args:
        places: where they stand (`unet_places`).
        config: what they are made of.
        embedding: size of the UNet's diffusion-time embedding.
        text: size of a text embedding.
        groups: of the group norms, as in the UNet; `eps` likewise.
    """

    def __init__(
        self,
        places: list[Place],
        config: TemporalConfig,
        *,
        embedding: int,
        text: int,
        groups: int = 32,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.config = config
        frames = config.frames_in_alpha
        context = CONTEXT_WIDTH if config.context_channels else None
        self.levels = {place.name: place.level for place in places}
        self.layers = nn.ModuleDict()
        for place in places:
            if place.heads:
                layer: nn.Module = TemporalTransformer(
                    place.channels,
                    heads=place.heads,
                    text=text if config.text else None,
                    frames=frames,
                )
            else:
                layer = TemporalResBlock(
                    place.channels,
                    embedding=embedding,
                    groups=groups,
                    eps=eps,
                    frames=frames,
                    context=context,
                )
            self.layers[place.name] = layer
        self.pyramid = (
            ContextPyramid(config.context_channels, 1 + max(self.levels.values()))
            if config.context_channels
            else None
        )
        self.shortcut = (
            ContextShortcut(
                config.context_channels, reach=config.context_reach, embedding=embedding
            )
            if config.context_channels and config.context_reach
            else None
        )
        self.label = zeroed(nn.Embedding(config.labels, embedding)) if config.labels else None
        self.context_noise = ContextNoise(embedding) if config.told_context_noise else None

    def save(self, folder: Path) -> None:
        """Writes temporal.json and temporal.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "temporal.json").write_text(self.config.model_dump_json(indent=2))
        tensors = {name: t.contiguous().cpu() for name, t in self.state_dict().items()}
        save_file(tensors, folder / "temporal.safetensors")

    def load(self, folder: Path) -> None:
        """Takes the weights in `folder`; what its model did not have keeps its start values.

        A predictor started from a text-to-video phi adds the context pyramid, nothing else: any
        other difference is an error.

        Raises:
            UserError: names the first key that is missing, unknown or of another shape.
        """
        tensors = read_tensors(folder / "temporal.safetensors")
        own = self.state_dict()
        new = {key for key in own if _is_conditioning(key)} - set(tensors)
        check_keys(own, tensors, where=repr(str(folder / "temporal.safetensors")), may_miss=new)
        self.load_state_dict(tensors, strict=False)


def load_temporal_config(folder: Path) -> TemporalConfig:
    """Reads the temporal.json of a saved phi.

    Raises:
        UserError: there is none, or it does not describe one.
    """
    path = folder / "temporal.json"
    if not path.is_file():
        raise UserError(f"No temporal layers in {str(folder)!r}; expected a temporal.json there.")
    return load_record(TemporalConfig, path, what="description of temporal layers")


def count_parameters(module: nn.Module) -> int:
    """Number of values in all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _is_conditioning(key: str) -> bool:
    extra = ("pyramid.", "shortcut.", "label.", "context_noise.")
    return key.startswith(extra) or ".context." in key


def initialised(layers: TemporalLayers, seed: int) -> TemporalLayers:
    """The same layers with start values that depend on `seed` alone, not on global state."""
    generator = torch.Generator().manual_seed(seed)
    for module in layers.modules():
        if isinstance(module, (nn.Linear, nn.Conv3d, nn.Conv2d)) and module.weight.any():
            fan_in = module.weight[0].numel()
            bound = fan_in**-0.5
            with torch.no_grad():
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
    return layers
