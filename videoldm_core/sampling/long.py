"""The cascade run forward: first frame, key frames, two interpolation passes, decoding, upscaling
(§3, §4.1).

Latents stay latents between the steps; decoded frames leave in portions, so that memory does not
grow with the
length of the video beyond its latents.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from videoldm_core.conditioning import Given, LowResolution, mark_known
from videoldm_core.models.video_decoder import VideoDecoder
from videoldm_core.objectives.denoising import Denoiser
from videoldm_core.randomness import SampleRng
from videoldm_core.records import Record
from videoldm_core.sampling.guidance import Guidance, guided_prediction
from videoldm_core.sampling.samplers import SamplerName, sample

Progress = Callable[[str, int, int], None]  # (what, done, total)


class SamplingConfig(Record):
    """How the cascade is sampled."""

    sampler: SamplerName = "ddim"
    steps: int = 50  # of the image model and the predictor
    guidance: Guidance = Guidance(text=7.5, context=1.5)  # of the same two
    interpolation_steps: int = 50
    # Exaggerated frames would differ from the given ones between them, once per window: pulsing.
    interpolation_guidance: Guidance = Guidance()
    upscale_steps: int = 20
    upscale_noise_timestep: int = 20  # noise put on the low resolution, which the upscaler is told
    portion: int = 8  # frames decoded and upscaled at a time (§3.4)
    overlap: int = 2  # frames on each side of a portion that are computed and dropped
    windows: int = 8  # interpolation windows per batch


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """The models of one release, loaded."""

    image: Denoiser
    predictor: Denoiser
    interpolator: Denoiser
    decoder: VideoDecoder
    upscaler: Denoiser
    key_frames: int  # of the predictor's clip
    every: int  # distance of the key frames an interpolation pass is given
    low_resolution: LowResolution  # what the upscaler is given


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked for."""

    text: Tensor  # 1 l d
    null_text: Tensor  # 1 l d
    latent_size: tuple[int, int, int]  # c h w
    seed: int


class Sampling:
    """One video in the making."""

    def __init__(
        self, cascade: Cascade, prompt: Prompt, config: SamplingConfig, progress: Progress
    ) -> None:
        self.cascade, self.prompt, self.config = cascade, prompt, config
        self._progress = progress

    @torch.no_grad()
    def video(self, key_frames: int, passes: int) -> Iterator[Tensor]:
        """Upscaled frames t 3 H W in [-1, 1], in portions, in order."""
        keys = self.key_latents(self.first_latent(), key_frames)
        latents = keys
        for which in range(passes):
            latents = self.interpolate(latents, which)
        yield from self.decode_and_upscale(latents)

    def first_latent(self) -> Tensor:
        """The first frame from the image model: 1 c h w."""
        rng = self._rng("first frame", [0])
        self._progress("first frame", 0, 1)
        first = self._denoise(self.cascade.image, rng, 1, Given())[0]
        self._progress("first frame", 1, 1)
        return first

    def key_latents(self, first: Tensor, count: int) -> Tensor:
        """`count` key frames t c h w that go on from `first` (1 c h w) (§4.1).

        The first call is given one frame, every other the last two, which carry the motion.
        """
        keys, call = first, 0
        while len(keys) < count:
            self._progress("key frames", len(keys), count)
            known = min(len(keys), 2)
            clip = torch.zeros(1, self.cascade.key_frames, *self.prompt.latent_size).to(first)
            clip[0, :known] = keys[-known:]
            mask = (torch.arange(clip.shape[1]) < known)[None]
            rng, given = self._rng("key frames", [call]), mark_known(clip, mask)
            new = self._denoise(self.cascade.predictor, rng, clip.shape[1], given)
            keys, call = torch.cat([keys, new[0, known:]]), call + 1
        self._progress("key frames", count, count)
        return keys[:count]

    def interpolate(self, latents: Tensor, which: int) -> Tensor:
        """n -> every (n - 1) + 1 frames: new ones between each two, the given ones kept (§3.3)."""
        every, batch = self.cascade.every, self.config.windows
        pairs = torch.stack([latents[:-1], latents[1:]], dim=1)
        what, windows = f"interpolation pass {which + 1}", []
        for start in range(0, len(pairs), batch):
            self._progress(what, start, len(pairs))
            some = pairs[start : start + batch]
            clip = torch.zeros(len(some), every + 1, *self.prompt.latent_size).to(latents)
            clip[:, 0], clip[:, -1] = some[:, 0], some[:, 1]
            mask = (torch.arange(every + 1) % every == 0).expand(len(some), -1)
            rng, given = self._rng(what, range(start, start + len(some))), mark_known(clip, mask)
            label = torch.full((len(some),), which)
            noise = rng.normal((every + 1, *self.prompt.latent_size)).to(latents)
            new = self._run(
                self.cascade.interpolator,
                noise,
                given,
                label,
                generators=rng.generators,
                steps=self.config.interpolation_steps,
                guidance=self.config.interpolation_guidance,
            )
            new[:, 0] = some[:, 0]
            windows.append(new[:, :-1].flatten(0, 1))
        self._progress(what, len(pairs), len(pairs))
        return torch.cat([*windows, latents[-1:]])

    def decode_and_upscale(self, latents: Tensor) -> Iterator[Tensor]:
        """Frames t 3 H W of latents t c h w, a portion at a time (§3.4).

        Each portion is computed with some neighbours on either side, which are dropped: a border
        between
        portions would otherwise show.
        """
        total, step, margin = len(latents), self.config.portion, self.config.overlap
        for start in range(0, total, step):
            self._progress("decoded and upscaled frames", start, total)
            low, high = max(0, start - margin), min(total, start + step + margin)
            decoded = self.cascade.decoder(latents[None, low:high] / self.cascade.image.scale)
            frames = self._upscale(decoded.float().clamp(-1, 1), first=low)
            yield frames[0, start - low : min(start + step, total) - low].clamp(-1, 1)
        self._progress("decoded and upscaled frames", total, total)

    def _upscale(self, low: Tensor, *, first: int) -> Tensor:
        model, low_resolution = self.cascade.upscaler, self.cascade.low_resolution
        factor = low_resolution.factor
        frames = low.shape[1]
        height, width = (side * factor // model.shrinks for side in low.shape[-2:])
        size = (model.channels, height, width)
        # All frames start from the same noise: what is made up stays where it is from frame to
        # frame and from portion to portion. The paper is silent; noise of each frame's own left
        # 2.3 grey levels of flicker on a video that had 0.7.
        noise = self._rng("upscaling", [0]).normal(size)[None].expand(1, frames, *size)
        small = tuple(low.shape[2:])
        blur = self._rng("low resolution", [0]).normal(small)[None].expand(1, frames, *small)
        level = torch.tensor([self.config.upscale_noise_timestep])
        given = low_resolution.degrade(
            low, level, blur.to(low), model.schedule, size=(height, width)
        )
        diffused = self._run(
            model,
            noise.to(low),
            given,
            None,
            generators=self._rng("upscaling, sampler", [first]).generators,
            steps=self.config.upscale_steps,
            guidance=Guidance(),
        )
        return model.clip_of(given.from_diffused(diffused))

    def _denoise(self, model: Denoiser, rng: SampleRng, frames: int, given: Given) -> Tensor:
        """Latents b frames c h w, their noise from `rng`."""
        return self._run(
            model,
            rng.normal((frames, *self.prompt.latent_size)).to(self.prompt.text.device),
            given,
            None,
            generators=rng.generators,
            steps=self.config.steps,
            guidance=self.config.guidance,
        )

    def _run(  # noqa: PLR0913 - private; the two callers differ in the last three
        self,
        model: Denoiser,
        noise: Tensor,
        given: Given,
        label: Tensor | None,
        *,
        generators: list[torch.Generator],
        steps: int,
        guidance: Guidance,
    ) -> Tensor:
        text = self.prompt.text.expand(len(noise), -1, -1)
        null_text = self.prompt.null_text.expand(len(noise), -1, -1)

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return guided_prediction(
                model,
                noisy,
                timesteps,
                text=text,
                null_text=null_text,
                given=given,
                guidance=guidance,
                label=label if model.told_pass else None,
            )

        return sample(
            predict,
            noise,
            model.schedule,
            sampler=self.config.sampler,
            steps=steps,
            generators=generators,
        )

    def _rng(self, purpose: str, numbers: Iterable[int]) -> SampleRng:
        """Randomness of some frames, windows or calls, whichever batch they are computed in."""
        return SampleRng(self.prompt.seed, purpose, torch.tensor(list(numbers)))
