"""The critic of the decoder fine-tune: a patch-wise discriminator of 3D convolutions (§3.1.1)."""

from torch import Tensor, nn
from torch.nn import functional as F

from videoldm_core.records import Record


class CriticConfig(Record):
    """Size of the discriminator."""

    width: int = 64  # channels of the first layer
    layers: int = 3  # strided layers; each halves height and width


class PatchDiscriminator3D(nn.Module):
    """Scores overlapping space-time patches of a video as real (> 0) or decoded (< 0).

    Kernels (3, 4, 4) with stride (1, 2, 2), LeakyReLU 0.2, weights N(0, 0.02): PatchGAN (Isola
    2017)
    in three dimensions. Deviation: group instead of batch norm, which is wrong for the small
    batches that videos allow and differs between numbers of processes.
    """

    def __init__(self, config: CriticConfig, *, channels: int = 3) -> None:
        super().__init__()
        widths = [config.width * min(2**i, 8) for i in range(config.layers)]
        layers: list[nn.Module] = [_conv(channels, widths[0], stride=2), nn.LeakyReLU(0.2)]
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [
                _conv(narrow, wide, stride=2),
                nn.GroupNorm(min(8, wide // 4), wide),
                nn.LeakyReLU(0.2),
            ]
        self.body = nn.Sequential(*layers)
        self.score = _conv(widths[-1], 1, stride=1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, video: Tensor) -> Tensor:
        """Maps frames b t 3 h w to scores of patches, b t h' w'."""
        return self.score(self.body(video.transpose(1, 2))).squeeze(1)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: mean max(0, 1 - D(real)) + max(0, 1 + D(fake)), halved."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def _conv(channels_in: int, channels_out: int, *, stride: int) -> nn.Conv3d:
    return nn.Conv3d(
        channels_in, channels_out, (3, 4, 4), stride=(1, stride, stride), padding=(1, 1, 1)
    )
