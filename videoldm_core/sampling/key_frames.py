"""Key frames: made call by call when they are first asked for, and kept in files (§3.2, §4.1).

On disk, so that memory does not grow with the video and an interrupted command goes on.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from videoldm_core.diffusion.conditioning import FirstFrames, Given, mark_known
from videoldm_core.errors import UserError
from videoldm_core.sampling.clip_sampler import Drawing, RoleModel, check_finite
from videoldm_core.sampling.interpolation import Progress
from videoldm_core.system.files import write_bytes_atomically

CARRIED = 2  # frames that a call is given of those before: they show place and motion


class KeyFrameCalls:
    """`count` key frames of one video.

    A model that is given first frames (a predictor) makes its trained number of frames per call:
    the first call goes on from one frame, or begins from nothing (S = 0), every other goes on from
    the last two. A model that is given nothing makes all frames in one call; more than it was
    trained on are made convolutionally in time, its attention limited to a frame distance (§4.2).
    The memory of that one call grows with their number.

    Args:
        folder: where the frames are kept; only of the same request.
        first: gives the first frame, 1 c h w; None: the model makes it too.
    """

    def __init__(  # noqa: PLR0913 - one call site
        self,
        drawing: Drawing,
        role: RoleModel,
        count: int,
        *,
        folder: Path,
        first: Callable[[], Tensor] | None,
        progress: Progress,
    ) -> None:
        check_key_frames(role, count, has_first=first is not None)
        self.drawing, self.role, self.count, self.first = drawing, role, count, first
        self._folder, self._progress = folder, progress
        self._is_given = isinstance(role.given, FirstFrames)
        self._per_call = role.frames if self._is_given else count
        self._new = self._per_call - CARRIED

    def read(self, low: int, high: int) -> Tensor:
        """Key frames [low, high), t c h w."""
        assert 0 <= low < high <= self.count, f"[{low}, {high}) of {self.count} key frames"
        return torch.cat([self._some(call, low, high) for call in self._calls(low, high)])

    def _calls(self, low: int, high: int) -> range:
        return range(self._call_of(low), self._call_of(high - 1) + 1)

    def _call_of(self, frame: int) -> int:
        return 0 if frame < self._per_call else 1 + (frame - self._per_call) // self._new

    def _begin(self, call: int) -> int:
        """Number of the first frame that a call makes."""
        return 0 if call == 0 else self._per_call + (call - 1) * self._new

    def _some(self, call: int, low: int, high: int) -> Tensor:
        path, begin = self._path(call), self._begin(call)
        first = call + 1  # of the calls that are to be made: each needs the one before
        while first and not self._path(first - 1).exists():
            first -= 1
        for one in range(first, call + 1):
            self._make(one)
        with safe_open(path, framework="pt") as file:
            kept = file.get_slice("frames")
            return kept[max(0, low - begin) : high - begin].to(self.drawing.device)

    def _make(self, call: int) -> None:
        begin = self._begin(call)
        self._progress("key frames", begin, self.count)
        if call:
            before = self.read(begin - CARRIED, begin)
        else:
            before = None if self.first is None else self.first()
        clip = self._clip(call, before)
        check_finite(clip, f"key frames, call {call + 1}")
        new = clip if call == 0 else clip[CARRIED:]
        write_bytes_atomically(self._path(call), save({"frames": new.cpu().contiguous()}))
        self._progress("key frames", min(begin + len(new), self.count), self.count)

    def _clip(self, call: int, before: Tensor | None) -> Tensor:
        """A clip t c h w that goes on from the frames `before`, which it begins with."""
        drawing, size = self.drawing, self.drawing.prompt.latent_size
        rng = drawing.rng("key frames", [call])
        noise = rng.normal((self._per_call, *size)).to(drawing.device)
        given, known = Given(), 0 if before is None else len(before)
        if self._is_given:
            context = torch.zeros_like(noise)
            if before is not None:
                context[0, :known] = before
            given = mark_known(context, (torch.arange(self._per_call) < known)[None])
        clip = drawing(
            self.role,
            noise,
            given,
            generators=rng.generators,
            steps=drawing.config.steps,
            guidance=drawing.config.guidance,
        )[0]
        if before is not None:
            clip[:known] = before
        return clip

    def _path(self, call: int) -> Path:
        return self._folder / f"keys-{call:05}.safetensors"


def check_key_frames(role: RoleModel, count: int, *, has_first: bool) -> None:
    """Refuses a number of key frames or a first frame that the model has no way to take.

    Raises:
        UserError: says what to change.
    """
    if isinstance(role.given, FirstFrames):
        if role.frames <= CARRIED:
            raise UserError(
                f"The key-frame model was trained on {role.frames} frames, {CARRIED} of which it "
                f"is given; train it on at least {CARRIED + 1}."
            )
        return
    if has_first:
        raise UserError(
            "The key-frame model takes no first frame: it was trained without context. Leave "
            "first_frame out, or sample with a prediction model (§3.2) as roles.key_frames."
        )
    check_length(role, count, what="key_frames")


def check_length(role: RoleModel, frames: int, *, what: str) -> None:
    """Refuses clips longer than alpha, where that is one value per frame (§4.2).

    Raises:
        UserError: names the number of frames that it was trained on.
    """
    phi = role.denoiser.net.temporal
    alphas = None if phi is None else phi.config.frames_in_alpha
    if alphas is not None and frames != alphas:
        raise UserError(
            f"{what} = {frames}, but the model has one alpha for each of {alphas} frames and makes "
            f"exactly so many; ask for {alphas}, or train it with alpha: scalar."
        )
