"""Latents to frames: decoded and upscaled a portion at a time, portions fading into one another
(§3.4).
"""

from functools import partial

import torch
from torch import Tensor

from videoldm_core.conditioning import LowResolution
from videoldm_core.models.video_decoder import VideoDecoder
from videoldm_core.sampling.drawing import Drawing, RoleModel
from videoldm_core.sampling.guidance import Guidance
from videoldm_core.sampling.interpolation import Latents
from videoldm_core.sampling.key_frames import check_length
from videoldm_core.sampling.pieces import Cut, tiles


class Frames:
    """The frames of a video, in portions of `SamplingConfig.portion`.

    A portion is computed with neighbours on either side, so that no border shows. It is what a
    whole video at once would give as far as the networks look no further than the dropped part of
    the overlap. Convolutions over time do; the group norms of temporal ResBlocks take their
    statistics over all frames they are given, so portions of unlike content differ a little from
    the whole, and the fade hides the step between them.

    Args:
        shrinks: how many times smaller than decoded frames, per side, latents are.
        scale: of the latents; the decoder is given unscaled ones.
        upscaler: None: decoded frames are the video.
    """

    def __init__(
        self,
        drawing: Drawing,
        latents: Latents,
        *,
        decoder: VideoDecoder,
        shrinks: int,
        scale: float,
        upscaler: RoleModel | None,
    ) -> None:
        config = drawing.config
        self.drawing, self.latents, self.count = drawing, latents, latents.count
        self._decoder, self._shrinks, self._scale = decoder, shrinks, scale
        self._upscaler = upscaler
        self._cut = Cut(
            total=self.count, size=config.portion, overlap=config.overlap, blend=config.blend
        )
        self.portions = self._cut.count
        self._computed: dict[int, Tensor] = {}
        if upscaler is not None:
            for length in {piece.high - piece.low for piece in self._cut.pieces()}:
                check_length(upscaler, length, what="frames upscaled at once")

    @torch.no_grad()
    def portion(self, number: int) -> Tensor:
        """Frames [number * portion, (number + 1) * portion), t 3 H W in [-1, 1]."""
        cut, start = self._cut, number * self._cut.size
        stop = min(cut.total, start + cut.size)
        blended = None
        for near in cut.around(number):
            piece = cut.piece(near)
            low, high = max(start, piece.low), min(stop, piece.high)
            weights = piece.weights[max(0, low - piece.low) : max(0, high - piece.low)]
            if not weights.any():
                continue
            frames = self._piece(near)
            if blended is None:
                blended = frames.new_zeros(stop - start, *frames.shape[1:])
            shown = frames[low - piece.low : high - piece.low]
            blended[low - start : high - start] += weights.to(frames)[:, None, None, None] * shown
        assert blended is not None, "the weights of every frame sum to 1"
        # Portions are asked for in order: what lies before the last one is not needed again.
        self._computed = {n: f for n, f in self._computed.items() if n >= number}
        return blended.clamp_(-1, 1)

    def _piece(self, number: int) -> Tensor:
        if number not in self._computed:
            piece = self._cut.piece(number)
            latents = self.latents.read(piece.low, piece.high)
            frames = self._decoded(latents / self._scale)
            if self._upscaler is not None:
                frames = self._upscaled(self._upscaler, frames[None], first=piece.low)[0]
            self._computed[number] = frames
        return self._computed[number]

    def _decoded(self, latents: Tensor) -> Tensor:
        """Frames t 3 H W of unscaled latents t c h w, in tiles where the config says so."""
        side, overlap = self.drawing.config.decoder_tile, self.drawing.config.tile_overlap
        if side is None:
            return self._decode(latents)
        factor = self._shrinks
        height, width = (length * factor for length in latents.shape[-2:])
        blended = latents.new_zeros(len(latents), 3, height, width)
        for row in tiles(height, side=side, overlap=overlap, grain=factor).pieces():
            for column in tiles(width, side=side, overlap=overlap, grain=factor).pieces():
                weights = (row.weights[:, None] * column.weights).to(latents)
                rows = slice(row.low // factor, row.high // factor)
                columns = slice(column.low // factor, column.high // factor)
                frames = self._decode(latents[:, :, rows, columns])
                blended[:, :, row.low : row.high, column.low : column.high] += weights * frames
        return blended

    def _decode(self, latents: Tensor) -> Tensor:
        with self.drawing.autocast():
            return self._decoder(latents[None])[0].float().clamp(-1, 1)

    def _upscaled(self, role: RoleModel, low: Tensor, *, first: int) -> Tensor:
        """Frames b t 3 H W of decoded frames b t 3 h w, the first of which is number `first`."""
        model, kind, drawing = role.denoiser, role.given, self.drawing
        assert isinstance(kind, LowResolution), "checked when the cascade was loaded"
        config, frames = drawing.config, low.shape[1]
        height, width = (side * kind.factor // model.shrinks for side in low.shape[-2:])
        size = (model.channels, height, width)
        rng = partial(drawing.rng, is_shared=True)  # what futures share looks alike in all
        # All frames start from the same noise: what is made up stays where it is from frame to
        # frame and from portion to portion. The paper is silent; noise of each frame's own left
        # 2.3 grey levels of flicker on a video that had 0.7.
        noise = rng("upscaling", [0]).normal(size)[None].expand(1, frames, *size)
        small = tuple(low.shape[2:])
        blur = rng("low resolution", [0]).normal(small)[None].expand(1, frames, *small)
        level = torch.tensor([config.upscale_noise_timestep])
        given = kind.degrade(low, level, blur.to(low), model.schedule, size=(height, width))
        diffused = drawing(
            role,
            noise.to(low),
            given,
            generators=rng("upscaling, sampler", [first]).generators,
            steps=config.upscale_steps,
            guidance=Guidance(),
            grid=self._grid(role, height, width),
        )
        with drawing.autocast():
            return model.clip_of(given.from_diffused(diffused)).float()

    def _grid(self, role: RoleModel, height: int, width: int) -> tuple[Cut, Cut] | None:
        """Tiles of what is diffused; None: whole frames, the paper's way."""
        config, model = self.drawing.config, role.denoiser
        if config.tile is None:
            return None
        side, overlap = config.tile // model.shrinks, config.tile_overlap // model.shrinks
        grain = 2 ** (len(model.net.unet.config.block_out_channels) - 1)
        rows, columns = (
            tiles(total, side=side, overlap=overlap, grain=grain) for total in (height, width)
        )
        return rows, columns
