"""A first frame of the user's own: a picture that a video goes on from (§4.1: driving scenarios).

The file may be hostile: only two formats are read, and large pictures are refused by their header.
"""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor

from videoldm_core.errors import UserError, reason_of

FORMATS = ("PNG", "JPEG")
LARGEST_PX = 64_000_000  # in the whole picture
# What PIL raises on damaged files, beside the OSErrors it means to.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error)


def read_picture(path: Path, height: int, width: int) -> Tensor:
    """The picture at `path`, resized to cover and cropped about its middle: 3 height width in
    [-1, 1].

    Raises:
        UserError: there is none, it is of another format, damaged, or too large.
    """
    try:
        with _quiet(), Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > LARGEST_PX:
                raise UserError(
                    f"The first frame {str(path)!r} is {file.width}x{file.height} px, more than "
                    f"{LARGEST_PX / 1e6:.0f} million; make it smaller."
                )
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise UserError(
            f"Cannot read the first frame {str(path)!r} ({reason_of(error)}); "
            "expected a whole png or jpg picture."
        ) from error
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PIL's warning about large pictures: they are refused in a sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@torch.no_grad()
def encode_picture(picture: Tensor, vae: AutoencoderKL, scale: float) -> Tensor:
    """Scaled latents 1 c h w of a picture 3 H W: the posterior's mean, as stored latents are."""
    return vae.encode(picture[None]).latent_dist.mean * scale
