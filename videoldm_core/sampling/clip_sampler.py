"""One model drawn from: noise becomes a clip under the prompt, with guidance, whole or in tiles."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from videoldm_core.cascade.annotations import GivenBox
from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.diffusion.conditioning import AnyGiven, Given, LowResolution
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.errors import UserError
from videoldm_core.memory.state import Precision
from videoldm_core.models.denoiser import Denoiser
from videoldm_core.sampling.guidance import Guidance, guided_prediction
from videoldm_core.sampling.samplers import sample
from videoldm_core.sampling.tiling import Cut


@dataclass(frozen=True, kw_only=True)
class RoleModel:
    """The model that plays one role of the cascade."""

    denoiser: Denoiser
    frames: int  # of the clips it was trained on
    given: AnyGiven  # what it was trained to be given
    is_personal: bool = False  # its image model is a fine-tune of the user's, with its own texts


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is asked for, by one text tower."""

    prompt: Tensor  # 1 l d
    empty: Tensor  # 1 l d


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked for."""

    texts: Texts  # by the run's own tower
    of_pixels: Texts | None = None  # by the tower of the upscaler, where that is another
    personal: Texts | None = None  # by the tower of the user's own image model
    labels: Mapping[str, str] = field(default_factory=dict)  # name -> value
    boxes: Sequence[GivenBox] | None = None  # None: it is not said where things are
    latent_size: tuple[int, int, int]  # c h w
    seed: int
    future: int = 1  # of several that share the first frame


def check_finite(frames: Tensor, what: str) -> None:
    """Ends sampling where a network gave numbers that are no picture.

    Raises:
        UserError: says what was made of them; nothing of it is kept.
    """
    if not frames.isfinite().all():
        raise UserError(
            f"The model of {what} gave numbers that are not finite, so that this and all after it "
            "would be black; expected finite ones: lower the guidance scale, sample in fp32, or "
            "train that stage again."
        )


class Drawing:
    """Draws clips from models, all of one prompt.

    Args:
        precision: bf16: networks run under autocast; clips and noise stay float32.
        keep_going: is called before every step of every clip; raises where it is to end.
    """

    def __init__(
        self,
        prompt: Prompt,
        config: SamplingConfig,
        *,
        precision: Precision = "fp32",
        keep_going: Callable[[], None] = lambda: None,
    ) -> None:
        self.prompt, self.config, self.precision = prompt, config, precision
        self.keep_going = keep_going
        self.device = prompt.texts.prompt.device

    def rng(self, purpose: str, numbers: Iterable[int], *, is_shared: bool = False) -> SampleRng:
        """Randomness of some frames, windows or calls, whichever batch they are computed in.

        Args:
            is_shared: the same in every future.
        """
        future = self.prompt.future
        if future > 1 and not is_shared:
            purpose = f"{purpose}, future {future}"
        return SampleRng(self.prompt.seed, purpose, torch.tensor(list(numbers)))

    def autocast(self) -> torch.autocast:
        """The precision in which networks run."""
        kind, is_on = self.device.type, self.precision == "bf16"
        return torch.autocast(kind, torch.bfloat16, enabled=is_on)

    def _texts_of(self, role: RoleModel) -> tuple[Texts, Texts]:
        """What the spatial layers of a model read, and what its temporal layers do (§4.3)."""
        prompt = self.prompt
        if isinstance(role.given, LowResolution) and prompt.of_pixels is not None:
            return prompt.of_pixels, prompt.of_pixels
        if role.is_personal and prompt.personal is not None:
            return prompt.personal, prompt.texts
        return prompt.texts, prompt.texts

    def _conditions(self, role: RoleModel, texts: Texts, count: int) -> tuple[Tensor, Tensor]:
        """What is asked for, and nothing, as the model reads them: b l d each."""
        prompt, model = self.prompt, role.denoiser
        asked = model.asked_condition(texts.prompt, prompt.labels, prompt.boxes)
        nothing = model.condition(texts.empty)
        return asked.expand(count, -1, -1), nothing.expand(count, -1, -1)

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - what a clip depends on
        self,
        role: RoleModel,
        noise: Tensor,
        given: Given,
        *,
        generators: list[torch.Generator],
        steps: int,
        guidance: Guidance,
        label: Tensor | None = None,
        grid: tuple[Cut, Cut] | None = None,
    ) -> Tensor:
        """Denoises `noise` b t c h w.

        In clips longer than the trained ones temporal attention keeps to
        `SamplingConfig.temporal_reach` (§4.2). Deviation: their frames' positions go on beyond the
        trained ones, absolute as in training; what its "relative" encodings are the paper does not
        say, and the layers that match its parameter counts have none.

        Args:
            generators: of what stochastic samplers add, one per clip.
            label: which pass it is, (b), for a model that is told.
            grid: tiles of the rows and of the columns; None: whole frames.
        """
        is_longer = noise.shape[1] > role.frames
        role.denoiser.net.reach = self.config.temporal_reach if is_longer else None
        count, (spatial, own) = len(noise), self._texts_of(role)
        text, null_text = self._conditions(role, spatial, count)
        temporal = None if spatial is own else self._conditions(role, own, count)

        def whole(noisy: Tensor, timesteps: Tensor, given: Given) -> Tensor:
            with self.autocast():
                return guided_prediction(
                    role.denoiser,
                    noisy,
                    timesteps,
                    text=text,
                    null_text=null_text,
                    given=given,
                    guidance=guidance,
                    label=label if role.denoiser.told_pass else None,
                    temporal_texts=temporal,
                )

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            self.keep_going()
            if grid is None:
                return whole(noisy, timesteps, given)
            return by_tiles(lambda *tile: whole(tile[0], timesteps, tile[1]), noisy, given, grid)

        return sample(
            predict,
            noise,
            role.denoiser.schedule,
            sampler=self.config.sampler,
            steps=steps,
            generators=generators,
        )


def by_tiles(
    predict: Callable[[Tensor, Given], Tensor], noisy: Tensor, given: Given, grid: tuple[Cut, Cut]
) -> Tensor:
    """The prediction for z_tau (b t c h w), tile by tile, blended where tiles overlap.

    Called at every step, so that all tiles share one noisy video: what a step makes of a border is
    what both tiles go on from. It equals the prediction for whole frames as far as the network
    looks no further than the dropped half of the overlap: convolutions do, spatial attention and
    the statistics of group norms do not, and see the tile instead of the frame.
    """
    blended = torch.zeros_like(noisy)
    rows, columns = grid
    for row in rows.pieces():
        for column in columns.pieces():
            tile = (..., slice(row.low, row.high), slice(column.low, column.high))
            weights = (row.weights[:, None] * column.weights).to(noisy)
            blended[tile] += weights * predict(noisy[tile], _cropped(given, tile))
    return blended


def _cropped(given: Given, tile: tuple) -> Given:
    low, context = given.low_resolution, given.context
    return replace(
        given,
        low_resolution=None if low is None else low[tile],
        context=None if context is None else context[tile],
    )
