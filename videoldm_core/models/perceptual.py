"""LPIPS (Zhang 2018): how different two pictures look, by the features of a VGG16.

Both files are the user's: the backbone as torchvision and timm publish VGG16 (features.0.weight
...), the linear heads as the lpips package does (lin0.model.1.weight ...).
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from videoldm_core.models.weights import check_keys, read_checkpoint
from videoldm_core.records import Record, Weight

# Convolutions per block of VGG16; the features after each block's last ReLU are compared.
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
# The mean and deviation of ImageNet's colours, for pictures in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Deviation: the autoencoders of the paper (§3.1.1, after Rombach 2022) are trained with LPIPS. Its
# weights are on no package index, so that it is off until the user names their files.
NO_BACKBONE = "no perceptual backbone given: reconstruction is judged by pixels alone"


class PerceptualConfig(Record):
    """The files of LPIPS and how much it counts."""

    backbone: Path  # VGG16: a state dict in torchvision's names; its classifier is not read
    heads: Path  # the lpips package's weights for VGG
    weight: Weight = 1.0  # beside the mean absolute and squared error of pixels in [-1, 1]


class Perceptual(nn.Module):
    """The distance of `PerceptualConfig`'s networks; frozen, in float32.

    Args:
        weight: see `PerceptualConfig`; for the objective, not part of the distance.
        checkpointing: recompute one frame's features at a time in the backward pass.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, *, weight: float = 1.0, checkpointing: bool = False) -> None:
        super().__init__()
        self.weight, self.checkpointing = weight, checkpointing
        self.features = nn.Sequential(*_vgg16_features())
        self.heads = nn.ParameterList(torch.empty(1, width, 1, 1) for width, _ in BLOCKS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, frames: Tensor, target: Tensor) -> Tensor:
        """Distance of each of `frames` to its `target`, both n 3 h w in [-1, 1], h, w >= 16; (n).

        Gradients reach `frames` alone.
        """
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self._distance(frames, target)
        pairs = zip(frames.split(1), target.split(1), strict=True)
        return torch.cat([checkpoint(self._distance, *p, use_reentrant=False) for p in pairs])

    def load(self, config: PerceptualConfig) -> None:
        """Takes the weights of both files.

        Raises:
            UserError: a file cannot be read; or names the first key that does not fit.
        """
        backbone = read_checkpoint(config.backbone, lambda name: name.startswith("features."))
        expected = {f"features.{k}": t for k, t in self.features.state_dict().items()}
        check_keys(expected, backbone, where=repr(str(config.backbone)))
        heads = read_checkpoint(config.heads)
        names = [f"lin{i}.model.1.weight" for i in range(len(BLOCKS))]
        check_keys(dict(zip(names, self.heads, strict=True)), heads, where=repr(str(config.heads)))
        self.features.load_state_dict({k.split(".", 1)[1]: t for k, t in backbone.items()})
        for head, name in zip(self.heads, names, strict=True):
            head.copy_(heads[name])

    def _distance(self, frames: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = [_unit(f) for f in self._features(target)]
        layers = zip(self._features(frames), wanted, self.heads, strict=True)
        return torch.stack(
            [(head * (_unit(f) - w).square()).sum(1).mean((1, 2)) for f, w, head in layers]
        ).sum(0)

    def _features(self, frames: Tensor) -> Iterator[Tensor]:
        """relu1_2, 2_2, 3_3, 4_3 and 5_3 of frames n 3 h w."""
        h = (frames - self.shift) / self.scale
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                yield h
            h = layer(h)
        yield h


def load_perceptual(config: PerceptualConfig | None, *, checkpointing: bool) -> Perceptual | None:
    """LPIPS with the user's weights; None where none are given.

    Raises:
        UserError: a file cannot be read or does not fit.
    """
    if config is None:
        return None
    with torch.random.fork_rng(devices=[]):  # start values that are overwritten at once
        perceptual = Perceptual(weight=config.weight, checkpointing=checkpointing)
    perceptual.load(config)
    return perceptual


def _vgg16_features() -> Iterator[nn.Module]:
    """The layers in torchvision's order, so that their numbers are its names."""
    channels = 3
    for block, (width, convolutions) in enumerate(BLOCKS):
        if block:
            yield nn.MaxPool2d(2)
        for _ in range(convolutions):
            yield nn.Conv2d(channels, width, 3, padding=1)
            yield nn.ReLU()
            channels = width


def _unit(features: Tensor) -> Tensor:
    """Features n c h w as unit vectors over c; where all are zero, with a finite gradient."""
    return F.normalize(features, dim=1, eps=1e-10)
