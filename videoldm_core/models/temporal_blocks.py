"""The temporal layers phi that turn an image model into a video model (§3.1).

Which layers those are follows from the parameter counts that the paper prints. Every layer is made
so that before training it changes nothing: the last matrix of each branch is zero. Layers know
nothing of the UNet they stand in; video_unet.py calls them by the name of their place.
"""

import math
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

Layer = TypeVar("Layer", bound=nn.Module)


class Mixer(nn.Module):
    """out = alpha * spatial + (1 - alpha) * temporal, alpha = sigmoid(logit) in (0, 1)  (§3.1).

    A clamped raw alpha starting at 1 gives the temporal layer no gradient, and can stay pinned.

    Args:
        frames: one alpha per frame of a clip of fixed length (driving); None: one for any length.
        logit: start value; 0.5 gives alpha = 0.62 as in the authors' later code.
    """

    def __init__(self, frames: int | None = None, logit: float = 0.5) -> None:
        super().__init__()
        # Shape (1,), not (): DeepSpeed cannot partition a 0-d parameter.
        self.logit = nn.Parameter(torch.full((frames or 1,), logit))

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Blends two equal shapes b t ...; exactly `spatial` where alpha is 1."""
        return torch.lerp(spatial, temporal, self._temporal_share(spatial))

    def added(self, spatial: Tensor, change: Tensor) -> Tensor:
        """The same where temporal = spatial + change, which is then never formed."""
        return torch.addcmul(spatial, self._temporal_share(spatial), change)

    def _temporal_share(self, like: Tensor) -> Tensor:
        """1 - alpha, shaped to b t ....

        As sigmoid(-logit) in float32: in bf16 an alpha near 1 would round to it, and switch the
        temporal layer off for ever.
        """
        count, frames = len(self.logit), like.shape[1]
        assert count in (1, frames), f"{count} alphas for clips of {frames} frames"
        share = torch.sigmoid(-self.logit.float())
        return share.view(-1, *[1] * (like.ndim - 2)).to(like.dtype)


class TimeConv(nn.Conv3d):
    """A (3, 1, 1) convolution over time, frames first: b t c h w to the same shape.

    Computed as one in two dimensions, time and place: PyTorch's in three took 1.3-2.4 times as long
    on a CPU, and on accelerators has been slow, hungry and wrong in bf16 (pytorch/pytorch#166643,
    #163539).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Maps b t c h w to the same shape; its memory lies as b c t h w."""
        flat = x.transpose(1, 2).flatten(3)
        out = F.conv2d(flat, self.weight.squeeze(-1), self.bias, padding=(1, 0))
        return out.unflatten(3, x.shape[3:]).transpose(1, 2)


class TemporalResBlock(nn.Module):
    """A residual block of (3, 1, 1) convolutions over time, placed after a spatial ResBlock (§3.1).

    Args:
        channels: of the spatial block's output.
        embedding: size of the diffusion-time embedding; None in the decoder, which has none.
        groups: of the group norms; statistics run over frames too.
        frames, logit: see `Mixer`.
        context: channels of the context map fed in (§3.2), or None.
    """

    def __init__(  # noqa: PLR0913 - the decoder's and the UNet's blocks differ in these
        self,
        channels: int,
        *,
        embedding: int | None,
        groups: int,
        eps: float = 1e-5,
        frames: int | None = None,
        context: int | None = None,
        logit: float = 0.5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = TimeConv(channels)
        self.time = nn.Linear(embedding, channels) if embedding else None
        self.norm2 = nn.GroupNorm(groups, channels, eps)
        self.conv2 = zeroed(TimeConv(channels))
        self.context = zeroed(nn.Conv2d(context, channels, 1)) if context else None
        self.mixer = Mixer(frames, logit)

    def forward(
        self, x: Tensor, frames: int, embedding: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Maps (b t) c h w to the same shape.

        Args:
            frames: t.
            embedding: diffusion-time embedding per frame, (b t) e.
            context: context map of this resolution, (b t) c h w (§3.2).
        """
        given = x if context is None or self.context is None else x + self.context(context)
        h = self.conv1(_activated(self.norm1, given.unflatten(0, (-1, frames))))
        if self.time is not None and embedding is not None:
            h = h + self.time(F.silu(embedding)).view(*h.shape[:3], 1, 1)
        change = self.conv2(_activated(self.norm2, h))
        return self.mixer.added(x.unflatten(0, (-1, frames)), change).flatten(0, 1)


def _activated(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU of the group norm of b t c h w, whose statistics run over frames; same shape."""
    return F.silu(norm(x.transpose(1, 2))).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear -> GEGLU -> Linear with four times the width; the last matrix starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(channels, 8 * channels)
        self.proj_out = zeroed(nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (... c) to (... c)."""
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


class Attention(nn.Module):
    """Multi-head attention along axis 1, of sequences that lie side by side on axis 2.

    Queries come from x, keys and values from `source`.
    """

    # Positions times heads of one call: on accelerators they are a grid of at most so many blocks
    # (pytorch/pytorch#142228).
    MOST_AT_ONCE = 65535

    def __init__(self, channels: int, source_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(source_channels, channels, bias=False)
        self.to_v = nn.Linear(source_channels, channels, bias=False)
        self.to_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps x (n q p c) given source (n k p d); `mask` (q k) is True where attention is allowed.

        Each of the p sequences attends to its own; as so many more heads, they need not be moved.
        """
        q, k, v = (
            rearrange(y, "n l p (heads d) -> n (p heads) l d", heads=self.heads)
            for y in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        parts = zip(*(y.split(self.MOST_AT_ONCE, dim=1) for y in (q, k, v)), strict=True)
        read = [F.scaled_dot_product_attention(*part, attn_mask=mask) for part in parts]
        out = read[0] if len(read) == 1 else torch.cat(read, dim=1)
        return self.to_out(rearrange(out, "n (p heads) l d -> n l p (heads d)", heads=self.heads))


class TemporalTransformer(nn.Module):
    """Attention over the frames of one position, then over the text (§3.1).

    Args:
        channels: of the tokens.
        heads: as in the spatial block.
        text: size of a text embedding; None: no text in the temporal layers.
        frames: see `Mixer`.
    """

    def __init__(
        self, channels: int, *, heads: int, text: int | None, frames: int | None = None
    ) -> None:
        super().__init__()
        self.position = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.SiLU(), zeroed(nn.Linear(4 * channels, channels))
        )
        self.norm_in, self.ff_in = nn.LayerNorm(channels), FeedForward(channels)
        self.norm_self, self.attn_self = (
            nn.LayerNorm(channels),
            Attention(channels, channels, heads),
        )
        self.norm_text = nn.LayerNorm(channels) if text else None
        self.attn_text = Attention(channels, text, heads) if text else None
        self.norm_out, self.ff_out = nn.LayerNorm(channels), FeedForward(channels)
        self.mixer = Mixer(frames)

    def forward(
        self, x: Tensor, frames: int, text: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Maps tokens (b t) s c to the same shape.

        Args:
            frames: t.
            text: one text per video, b l d.
            mask: which frames see which, (t t); None: all see all.
        """
        # Frames stay where they are in memory: every layer here takes one token at a time but for
        # attention, which takes them from there.
        spatial = x.unflatten(0, (-1, frames))
        index = torch.arange(frames, device=x.device)
        h = spatial + self.position(sinusoid(index, x.shape[-1], x))[:, None]
        h = h + self.ff_in(self.norm_in(h))
        normed = self.norm_self(h)
        h = h + self.attn_self(normed, normed, mask)
        if self.attn_text is not None and self.norm_text is not None and text is not None:
            # All positions and frames of a video read the same text: fold them into the queries
            # instead of repeating the text for every position.
            queries = self.norm_text(h).flatten(1, 2)[:, :, None]
            h = h + self.attn_text(queries, text[:, :, None]).view_as(h)
        h = h + self.ff_out(self.norm_out(h))
        return self.mixer(spatial, h).flatten(0, 1)


def zeroed(layer: Layer) -> Layer:
    """The layer with all its parameters set to zero, so that its branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoid(values: Tensor, channels: int, like: Tensor) -> Tensor:
    """Sinusoidal embedding (n c) of numbers (n): [cos, sin], longest wavelength 10000 * 2 pi.

    Computed in float32, then cast to `like`: bf16 cannot tell neighbouring frames apart.
    """
    half = channels // 2
    scale = torch.arange(half, device=like.device, dtype=torch.float32) / half
    angles = values[:, None] * torch.exp(-math.log(10000.0) * scale)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(like.dtype)


def band(frames: int, reach: int | None, device: torch.device) -> Tensor | None:
    """Mask (t t) that lets a frame see those at most `reach` away; None when that is all of them.

    Convolutional-in-time sampling keeps to distances seen in training (§4.2).
    """
    if reach is None or reach >= frames - 1:
        return None
    index = torch.arange(frames, device=device)
    return (index[:, None] - index[None, :]).abs() <= reach
