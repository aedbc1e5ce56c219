"""The temporal layers phi that turn an image model into a video model (§3.1; method of the released
totals).

Every layer is made so that before training it changes nothing: the last matrix of each branch is
zero.
Layers know nothing of the UNet they stand in; video_unet.py calls them by the name of their place.
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

    def forward(self, spatial: Tensor, temporal: Tensor, frame_axis: int) -> Tensor:
        """Blends two equal shapes whose frames lie on axis `frame_axis`."""
        shape = [1] * spatial.ndim
        shape[frame_axis] = -1
        alpha = torch.sigmoid(self.logit).view(shape).to(spatial.dtype)
        return alpha * spatial + (1 - alpha) * temporal


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
        self.conv1 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.time = nn.Linear(embedding, channels) if embedding else None
        self.norm2 = nn.GroupNorm(groups, channels, eps)
        self.conv2 = zeroed(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)))
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
        spatial = rearrange(x, "(b t) c h w -> b c t h w", t=frames)
        h = rearrange(given, "(b t) c h w -> b c t h w", t=frames)
        h = self.conv1(F.silu(self.norm1(h)))
        if self.time is not None and embedding is not None:
            h = h + rearrange(self.time(F.silu(embedding)), "(b t) c -> b c t 1 1", t=frames)
        h = spatial + self.conv2(F.silu(self.norm2(h)))
        return rearrange(self.mixer(spatial, h, frame_axis=2), "b c t h w -> (b t) c h w")


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
    """Multi-head attention; queries from x, keys and values from `source`."""

    def __init__(self, channels: int, source_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(source_channels, channels, bias=False)
        self.to_v = nn.Linear(source_channels, channels, bias=False)
        self.to_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps x (n q c) given source (n k d); `mask` (q k) is True where attention is allowed."""
        q, k, v = (
            rearrange(y, "n l (heads d) -> n heads l d", heads=self.heads)
            for y in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(rearrange(out, "n heads l d -> n l (heads d)"))


class TemporalTransformer(nn.Module):
    """Attention over the frames of one position, then over the text; inside the spatial transformer
    (§3.1).

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
        index = torch.arange(frames, device=x.device)
        positions = self.position(sinusoid(index, x.shape[-1], x))
        h = rearrange(x, "(b t) s c -> b t s c", t=frames) + positions[:, None]
        b = h.shape[0]
        h = rearrange(h, "b t s c -> (b s) t c")
        h = h + self.ff_in(self.norm_in(h))
        normed = self.norm_self(h)
        h = h + self.attn_self(normed, normed, mask)
        if self.attn_text is not None and self.norm_text is not None and text is not None:
            # All positions and frames of a video read the same text: fold them into the queries
            # instead of repeating the text for every position.
            queries = rearrange(self.norm_text(h), "(b s) t c -> b (s t) c", b=b)
            read = self.attn_text(queries, text)
            h = h + rearrange(read, "b (s t) c -> (b s) t c", t=frames)
        h = h + self.ff_out(self.norm_out(h))
        h = rearrange(h, "(b s) t c -> b t s c", b=b)
        spatial = rearrange(x, "(b t) s c -> b t s c", t=frames)
        return rearrange(self.mixer(spatial, h, frame_axis=1), "b t s c -> (b t) s c")


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
