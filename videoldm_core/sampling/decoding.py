"""Latents to frames: decoded and upscaled in portions that fade into one another (§3.4)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from videoldm_core.diffusion.conditioning import LowResolution
from videoldm_core.models.video_decoder import VideoDecoder
from videoldm_core.sampling.clip_sampler import Drawing, RoleModel, check_finite
from videoldm_core.sampling.interpolation import Latents
from videoldm_core.sampling.key_frames import check_length
from videoldm_core.sampling.tiling import Cut, tiles


class Frames:
    """The frames of a video, in portions of `SamplingConfig.core` that are shown one by one.

    Always `SamplingConfig.portion` frames are computed at once, as many as the networks were
    trained on; those at either end are computed twice, so that no border shows. They are what a
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
        self.portions = -(-self.count // config.core)
        self._computed: dict[int, Tensor] = {}
        if upscaler is not None:
            at_once = min(config.portion, self.count)
            check_length(upscaler, at_once, what="frames upscaled at once")

    @torch.no_grad()
    def portion(self, number: int) -> Tensor:
        """Frames [number * core, (number + 1) * core), t 3 H W in [-1, 1]."""
        cut, start = self._cut, number * self._cut.core
        stop = min(cut.total, start + cut.core)
        blended = None
        for near in cut.showing(start, stop):
            frames, piece = self._piece(near), cut.piece(near)
            low, high = max(start, piece.low), min(stop, piece.high)
            weights = piece.weights[low - piece.low : high - piece.low].to(frames)
            if blended is None:
                blended = frames.new_zeros(stop - start, *frames.shape[1:])
            shown = frames[low - piece.low : high - piece.low]
            blended[low - start : high - start] += weights[:, None, None, None] * shown
        assert blended is not None, "the weights of every frame sum to 1"
        # Portions are asked for in order: what lies before the next one is not needed again.
        needed = cut.showing(stop, cut.total)
        self._computed = {n: frames for n, frames in self._computed.items() if n in needed}
        return blended.clamp_(-1, 1)

    def _piece(self, number: int) -> Tensor:
        if number not in self._computed:
            self.drawing.keep_going()
            piece = self._cut.piece(number)
            latents = self.latents.read(piece.low, piece.high)
            shown = f"frames {piece.low + 1} to {piece.high}"
            frames = self._decoded(latents / self._scale)
            check_finite(frames, f"decoding, {shown}")
            frames = frames.clamp_(-1, 1)
            if self._upscaler is not None:
                frames = self._upscaled(self._upscaler, frames[None], first=piece.low)[0]
                check_finite(frames, f"upscaling, {shown}")
            self._computed[number] = frames
        return self._computed[number]

    def _decoded(self, latents: Tensor) -> Tensor:
        """Frames t 3 H W of unscaled latents t c h w, in tiles where the config says so."""

        def decode(latents: Tensor) -> Tensor:
            with self.drawing.autocast():
                return self._decoder(latents[None])[0].float()

        config = self.drawing.config
        return decode_in_tiles(
            decode,
            latents,
            side=config.decoder_tile,
            overlap=config.tile_overlap,
            factor=self._shrinks,
        )

    def _upscaled(self, role: RoleModel, low: Tensor, *, first: int) -> Tensor:
        """Frames b t 3 H W of decoded frames b t 3 h w, the first of which is number `first`."""
        model, kind, drawing = role.denoiser, role.given, self.drawing
        assert isinstance(kind, LowResolution), "checked when the cascade was loaded"
        numbers = range(first, first + low.shape[1])
        height, width = (side * kind.factor // model.shrinks for side in low.shape[-2:])
        noise = self._noise("upscaling", numbers, (model.channels, height, width))
        blur = self._noise("low resolution", numbers, tuple(low.shape[2:]))
        level = torch.tensor([drawing.config.upscale_noise_timestep])
        given = kind.degrade(low, level, blur.to(low), model.schedule, size=(height, width))
        diffused = drawing(
            role,
            noise.to(low),
            given,
            generators=drawing.rng("upscaling, sampler", [first], is_shared=True).generators,
            steps=drawing.config.upscale_steps,
            guidance=drawing.config.guidance_of("upscaler")[1],
            grid=self._grid(role, height, width),
        )
        return self._clip_of(role, given.from_diffused(diffused)[0])[None]

    def _noise(self, purpose: str, numbers: Iterable[int], size: tuple[int, ...]) -> Tensor:
        """Noise 1 t c h w of the frames with these numbers, whichever portion they are in; the
        same in every future, so that what they share looks alike in all.
        """
        own = self.drawing.rng(purpose, numbers, is_shared=True).normal(size)
        common = self.drawing.rng(f"{purpose}, all frames", [0], is_shared=True).normal(size)
        share = self.drawing.config.upscale_shared_noise
        return (share**0.5 * common + (1 - share) ** 0.5 * own)[None]

    def _clip_of(self, role: RoleModel, diffused: Tensor) -> Tensor:
        """Frames t 3 H W of what an upscaler diffused, t c h w: the memory of a latent upscaler's
        own autoencoder is bounded by the tiles it was diffused in.
        """
        model, config = role.denoiser, self.drawing.config

        def clip_of(diffused: Tensor) -> Tensor:
            with self.drawing.autocast():
                return model.clip_of(diffused[None])[0].float()

        return decode_in_tiles(
            clip_of,
            diffused,
            side=config.tile if model.own_vae is not None else None,
            overlap=config.tile_overlap,
            factor=model.shrinks,
        )

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


def decode_in_tiles(
    decode: Callable[[Tensor], Tensor],
    latents: Tensor,
    *,
    side: int | None,
    overlap: int,
    factor: int,
) -> Tensor:
    """Frames t 3 H W of latents t c h w, tile by tile, blended where tiles overlap.

    Args:
        decode: frames of latents of any size.
        side: of a tile, px of the frame; None: frames are decoded whole.
        overlap: see `SamplingConfig.tile_overlap`.
        factor: how many times smaller than frames, per side, latents are.
    """
    if side is None:
        return decode(latents)
    height, width = (length * factor for length in latents.shape[-2:])
    blended = latents.new_zeros(len(latents), 3, height, width)
    for row in tiles(height, side=side, overlap=overlap, grain=factor).pieces():
        for column in tiles(width, side=side, overlap=overlap, grain=factor).pieces():
            weights = (row.weights[:, None] * column.weights).to(latents)
            rows = slice(row.low // factor, row.high // factor)
            columns = slice(column.low // factor, column.high // factor)
            frames = decode(latents[:, :, rows, columns])
            blended[:, :, row.low : row.high, column.low : column.high] += weights * frames
    return blended
