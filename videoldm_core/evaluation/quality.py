"""How close decoded video is to the real one; plain arithmetic, no networks."""

import torch
from torch import Tensor


def psnr(decoded: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per first axis, for values in [-1, 1]."""
    error = (decoded.clamp(-1, 1) - real).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error.clamp_min(1e-12))


def flicker(decoded: Tensor, real: Tensor) -> Tensor:
    """Error of the temporal gradient per clip b t c h w, in grey levels of 255 (root mean square).

    What changes from frame to frame in the decoded clip but not in the real one, or the reverse.
    """
    error = (decoded.clamp(-1, 1).diff(dim=1) - real.diff(dim=1)) * 127.5
    return error.square().flatten(1).mean(dim=1).sqrt()
