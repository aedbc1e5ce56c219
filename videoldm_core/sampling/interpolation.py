"""One interpolation pass: new frames between each two of the pass below (§3.3)."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from videoldm_core.diffusion.conditioning import Given, KeyFrames
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.sampling.clip_sampler import Drawing, RoleModel, check_finite

Progress = Callable[[str, int, int], None]  # (what, done, total)
GROUPS_KEPT = 2  # what is asked for next to one another may straddle two


class Latents(Protocol):
    """Latents of a video that are made, or read, when they are asked for."""

    count: int  # frames there are

    def read(self, low: int, high: int) -> Tensor:
        """Frames [low, high), t c h w."""
        ...


class Interpolation:
    """n frames `below` become every (n - 1) + 1; the given ones are kept to the bit (§3.3).

    Windows run in groups of `SamplingConfig.windows` that depend on nothing but their numbers. The
    last groups are kept, as portions of frames overlap.

    Args:
        which: number of the pass, which the model is told.
    """

    def __init__(
        self, drawing: Drawing, role: RoleModel, below: Latents, *, which: int, progress: Progress
    ) -> None:
        assert isinstance(role.given, KeyFrames), "checked when the cascade was loaded"
        self.drawing, self.role, self.below, self.which = drawing, role, below, which
        self.keys, self.every = role.given, role.given.every
        self.windows = below.count - 1
        self.count = self.every * self.windows + 1
        self._what, self._progress = f"interpolation pass {which + 1}", progress
        self._groups: OrderedDict[int, Tensor] = OrderedDict()

    def read(self, low: int, high: int) -> Tensor:
        """Frames [low, high), t c h w."""
        last, size = self.count - 1, self.every * self.drawing.config.windows
        parts = []
        if low < last:
            for number in range(low // size, (min(high, last) - 1) // size + 1):
                first = number * size
                parts.append(self._group(number)[max(0, low - first) : high - first])
        if high > last:  # no window begins with the last frame
            parts.append(self.below.read(self.windows, self.windows + 1))
        return torch.cat(parts)

    def _group(self, number: int) -> Tensor:
        if number not in self._groups:
            self._groups[number] = self._make(number)
        self._groups.move_to_end(number)
        while len(self._groups) > GROUPS_KEPT:
            self._groups.popitem(last=False)
        return self._groups[number]

    def _given(self, clip: Tensor, rng: SampleRng) -> Given:
        """The ends of windows t c h w, with noise on them if the model was trained to be told."""
        known = self.keys.mask(clip.shape[1]).expand(len(clip), -1)
        level = torch.full((len(clip),), self.drawing.config.interpolation_noise_timestep)
        noise = rng.normal(tuple(clip.shape[1:])) if self.keys.max_noise_timestep else clip
        return self.keys.give(clip, known, level, noise, self.role.denoiser.schedule)

    def _make(self, number: int) -> Tensor:
        """The frames of a group of windows, t c h w: of each all but the last."""
        drawing, every = self.drawing, self.every
        start = number * drawing.config.windows
        stop = min(self.windows, start + drawing.config.windows)
        ends = self.below.read(start, stop + 1)
        self._progress(self._what, start, self.windows)
        clip = ends.new_zeros(stop - start, every + 1, *ends.shape[1:])
        clip[:, 0], clip[:, -1] = ends[:-1], ends[1:]
        rng = drawing.rng(self._what, range(start, stop))
        noise = rng.normal(tuple(clip.shape[1:])).to(ends)
        new = drawing(
            self.role,
            noise,
            self._given(clip, rng),
            generators=rng.generators,
            steps=drawing.config.interpolation_steps,
            guidance=drawing.config.interpolation_guidance,
            label=torch.full((len(clip),), self.which, device=ends.device),
        )
        check_finite(new, f"{self._what}, windows {start + 1} to {stop}")
        new[:, 0] = ends[:-1]
        self._progress(self._what, stop, self.windows)
        return new[:, :-1].flatten(0, 1)
