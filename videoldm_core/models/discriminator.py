"""Critics: patch-wise discriminators of frames (stage 0) and of videos (the decoder, §3.1.1)."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from videoldm_core.records import Record


class CriticConfig(Record):
    """Size of the discriminator."""

    width: int = 64  # channels of the first layer
    layers: int = 3  # strided layers; each halves height and width


class _PatchDiscriminator(nn.Module):
    """PatchGAN (Isola 2017): LeakyReLU 0.2, weights N(0, 0.02), one score per overlapping patch.

    A score sees patches of 34, 70 and 142 px for 2, 3 and 4 strided layers.

    Deviation: group instead of batch norm, which is wrong for the small batches that videos allow
    and differs between numbers of processes.

    Args:
        convolution: (channels in, channels out, stride over height and width) -> a layer.
    """

    def __init__(
        self, convolution: Callable[[int, int, int], nn.Module], config: CriticConfig, channels: int
    ) -> None:
        super().__init__()
        widths = [config.width * min(2**i, 8) for i in range(config.layers + 1)]
        strides = [2] * (config.layers - 1) + [1]
        layers: list[nn.Module] = [convolution(channels, widths[0], 2), nn.LeakyReLU(0.2)]
        for narrow, wide, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [
                convolution(narrow, wide, stride),
                nn.GroupNorm(min(8, wide // 4), wide),
                nn.LeakyReLU(0.2),
            ]
        self.body = nn.Sequential(*layers)
        self.score = convolution(widths[-1], 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class PatchDiscriminator2D(_PatchDiscriminator):
    """Scores overlapping patches of a frame as real (> 0) or decoded (< 0)."""

    def __init__(self, config: CriticConfig, *, channels: int = 3) -> None:
        super().__init__(_conv2d, config, channels)

    def forward(self, frames: Tensor) -> Tensor:
        """Maps frames n 3 h w to scores of patches, n h' w'."""
        return self.score(self.body(frames)).squeeze(1)


class PatchDiscriminator3D(_PatchDiscriminator):
    """Scores overlapping space-time patches of a video as real (> 0) or decoded (< 0).

    Kernels (3, 4, 4) with stride (1, 2, 2): PatchGAN in three dimensions.
    """

    def __init__(self, config: CriticConfig, *, channels: int = 3) -> None:
        super().__init__(_conv3d, config, channels)

    def forward(self, video: Tensor) -> Tensor:
        """Maps frames b t 3 h w to scores of patches, b t h' w'."""
        return self.score(self.body(video.transpose(1, 2))).squeeze(1)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: mean max(0, 1 - D(real)) + max(0, 1 + D(fake)), halved."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def _conv2d(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    return nn.Conv2d(channels_in, channels_out, 4, stride=stride, padding=1)


def _conv3d(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    return nn.Conv3d(
        channels_in, channels_out, (3, 4, 4), stride=(1, stride, stride), padding=(1, 1, 1)
    )
