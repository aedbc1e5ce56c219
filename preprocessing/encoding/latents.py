"""Frames into latents, with an image autoencoder that is frozen. Knows neither clips nor shards."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from diffusers import AutoencoderTiny
from einops import rearrange

from videoldm_core.errors import UserError
from videoldm_core.models.frozen_encoder import Encoder
from videoldm_core.system.machine import usable_cores


@torch.no_grad()
def encode_frames(
    vae: Encoder, frames: np.ndarray, *, batch: int = 8, in_bfloat16: bool = False
) -> np.ndarray:
    """The posterior mean of every frame, unscaled.

    Args:
        frames: uint8 (t h w 3), RGB.
        batch: frames per forward pass; the same clip must always be given the same batch to give
            the same bits.
        in_bfloat16: autocast; several times faster on CPUs and GPUs that have it.

    Returns:
        float16 (t c h w), height and width divided by the autoencoder's factor.

    Raises:
        UserError: the autoencoder gives something that float16 cannot hold.
    """
    weight = next(vae.parameters())
    encoded = []
    for some in torch.from_numpy(frames).split(batch):
        pixels = rearrange(some.to(weight.device), "t h w c -> t c h w").to(weight.dtype)
        pixels = (pixels / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=in_bfloat16):
            encoded.append(_posterior_mean(vae, pixels).half().cpu())
    latents = torch.cat(encoded)
    if not latents.isfinite().all():
        raise UserError(
            "The image autoencoder gives latents that are infinite or not a number; "
            "its weights are unusable: train it longer or give another one."
        )
    return latents.contiguous().numpy()


def encode_side_by_side(
    vae: Encoder, clips: Iterable[np.ndarray], *, in_bfloat16: bool = False
) -> Iterator[np.ndarray]:
    """`encode_frames` of every clip, in order; on a CPU as many clips at a time as it has cores.

    Each clip is computed by one thread: faster than many threads on one clip (by far, where other
    work wants the cores), and the same bits on any number of cores.
    """
    count = usable_cores() if vae.device.type == "cpu" else 1
    waiting: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for frames in clips:
            waiting.append(pool.submit(encode_frames, vae, frames, in_bfloat16=in_bfloat16))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _posterior_mean(vae: Encoder, pixels: torch.Tensor) -> torch.Tensor:
    output = vae.encode(pixels)  # type: ignore[operator]
    return output.latents if isinstance(vae, AutoencoderTiny) else output.latent_dist.mode()
