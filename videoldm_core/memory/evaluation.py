"""What judging a trained stage and showing what it makes take, by shapes alone."""

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from videoldm_core.cascade.stage import Preset, Stage
from videoldm_core.jobs.clips import clips_at_once
from videoldm_core.memory.live import forward_bytes
from videoldm_core.memory.networks import Configs, inputs_on_meta, networks_on_meta, stored_size
from videoldm_core.memory.state import FLOAT32, Precision
from videoldm_core.objectives.decoding import TemporalDecoding


def judging_bytes(
    stage: Stage, inherited: Configs, table: Preset, *, processes: int, precision: Precision
) -> int:
    """Bytes per process that judging takes, weights included: training has let go of its own.

    Networks are held in float32, as in sampling, and see whole frames of `clips_at_once` clips.

    Args:
        inherited: configs of the parts the stage starts from.
    """
    whole = stage.model_copy(update={"crop": None})
    networks = networks_on_meta(whole, inherited)
    player = next(iter(networks.players.values()))
    clips = clips_at_once(stage, processes)
    passes = [(player, inputs_on_meta(player, whole, table.video, inherited, clips=clips))]
    held = sum(_count(module) for module in (player, *networks.beside))
    if networks.perceptual is not None:
        held -= _count(networks.perceptual)  # judges no more
    for part, vae, frames in _autoencoders(whole, inherited, clips):
        passes += _coding(vae, frames, stored_size(whole, table.video))
        if part == "vae":  # an own_vae is among what is beside the player
            held += _count(vae)
    forward = (
        forward_bytes(module, given, in_bfloat16=precision == "bf16") for module, given in passes
    )
    return held * FLOAT32 + max(forward)


class _Encoding(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, frames: Tensor) -> Tensor:
        return self.vae.encode(frames).latent_dist.mean


class _Decoding(_Encoding):
    def forward(self, frames: Tensor) -> Tensor:
        return self.vae.decode(frames).sample


def _autoencoders(
    stage: Stage, inherited: Configs, clips: int
) -> Iterator[tuple[str, AutoencoderKL, int]]:
    """Those that judging or showing run beside the player, by part, and on how many frames."""
    for part in ("vae", "own_vae"):
        if part in inherited:
            with torch.device("meta"):
                vae = AutoencoderKL.from_config(dict(inherited[part]))
            is_image_decoder = isinstance(stage.objective, TemporalDecoding)
            yield part, vae, clips * stage.frames if is_image_decoder else 1


def _coding(
    vae: AutoencoderKL, frames: int, size: tuple[int, int]
) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    factor, channels = 2 ** (len(vae.config.block_out_channels) - 1), vae.config.latent_channels
    height, width = size
    with torch.device("meta"):
        yield _Encoding(vae), {"frames": torch.empty(frames, 3, height, width)}
        latents = torch.empty(frames, channels, height // factor, width // factor)
        yield _Decoding(vae), {"frames": latents}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
