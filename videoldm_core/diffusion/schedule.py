"""The diffusion process as plain formulas: noising, targets and their inverses. Knows no network.

z_tau = alpha_tau x + sigma_tau eps,   sigma^2 = 1 - alpha^2                       (§2)
target y = eps  or  v = alpha_tau eps - sigma_tau x                                (Eq. 1)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from pydantic import Field
from torch import Tensor

from videoldm_core.errors import UserError
from videoldm_core.records import Record, Share, parse_record
from videoldm_core.system.plain_json import read_json

PREDICTION_TYPES = ("epsilon", "v_prediction")
FILE = "scheduler_config.json"
MOST_TIMESTEPS = 100_000


class Trained(Record):
    """What a diffusers scheduler's configuration says of how its model was trained.

    Defaults are those that diffusers reads into a file without the key, but for offset and last
    alpha: these are Stable Diffusion's, whose files in other samplers' words lack them.
    """

    num_train_timesteps: int = Field(default=1000, ge=1, le=MOST_TIMESTEPS)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None
    beta_start: float = Field(default=0.0001, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    # In place of a beta schedule.
    trained_betas: tuple[Share, ...] | None = Field(default=None, max_length=MOST_TIMESTEPS)
    prediction_type: str = Field(default="epsilon", max_length=100)
    rescale_betas_zero_snr: bool = False  # the last level is noise alone (Lin 2023)
    # How few steps are spread over the levels, and whether the last one ends without noise.
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = Field(default=1, ge=0, le=MOST_TIMESTEPS)
    set_alpha_to_one: bool = False


class NoiseSchedule:
    """alpha and sigma for every timestep, and what the network predicts.

    Both come from the image model's own scheduler configuration, never from us: CompVis calls
    "linear" what diffusers calls "scaled_linear", and Stable Diffusion versions differ in what
    they predict. What such a configuration says of a sampler (its solver, its choice of levels,
    clipping) is left out: it was chosen for another sampler, or for pixels.

    Args:
        where: what the configuration is, for messages.

    Attributes:
        config: what all of diffusers' schedulers read.
        timesteps: how many noise levels there are; level `timesteps - 1` is the noisiest.

    Raises:
        UserError: the configuration says no noise levels, or nonsense.
    """

    def __init__(self, config: Mapping[str, Any], *, where: str = "The noise schedule") -> None:
        known = {key: config[key] for key in Trained.model_fields if key in config}
        trained = parse_record(Trained, known, where=where)
        _check(trained, where)
        self.config = trained.model_dump(exclude_none=True) | {
            "clip_sample": False,  # latents reach beyond 1
            "thresholding": False,
        }
        self.predicts: str = trained.prediction_type
        self.timesteps: int = trained.num_train_timesteps
        power = DDIMScheduler.from_config(self.config).alphas_cumprod.double()
        if self.predicts == "epsilon" and power.min() <= 0:
            raise UserError(
                f"{where} has a level of noise alone (rescale_betas_zero_snr), where a prediction "
                "of epsilon says nothing of the clip; expected prediction_type v_prediction: copy "
                "the file of the model it belongs to."
            )
        self._signal_power = {power.device: power}

    @classmethod
    def load(cls, folder: Path) -> "NoiseSchedule":
        """Reads the `scheduler/` folder of a diffusers image model, of whichever sampler.

        Raises:
            UserError: there is none, or it is not one.
        """
        try:
            config = read_json(folder / FILE)
        except (OSError, ValueError):
            config = None
        if not isinstance(config, dict):
            raise UserError(
                f"No noise schedule in {str(folder)!r}; expected {FILE} as in the scheduler/ "
                "folder of a diffusers model."
            )
        return cls(config, where=f"The noise schedule {str(folder / FILE)!r}")

    def save(self, folder: Path) -> None:
        """Writes a `scheduler/` folder that diffusers reads."""
        DDIMScheduler.from_config(self.config).save_pretrained(folder)

    def has_levels_of(self, other: "NoiseSchedule") -> bool:
        """Whether every timestep has the same alpha and sigma as in `other`."""
        on = torch.device("cpu")
        return self._signal_power[on].equal(other._signal_power[on])

    def alpha(self, timesteps: Tensor) -> Tensor:
        """Signal scale alpha_tau for timesteps (b,), shaped (b 1 1 1 1)."""
        return self._power(timesteps).sqrt().float().view(-1, 1, 1, 1, 1)

    def sigma(self, timesteps: Tensor) -> Tensor:
        """Noise scale sigma_tau = sqrt(1 - alpha_tau^2) for timesteps (b,), shaped (b 1 1 1 1)."""
        return (1 - self._power(timesteps)).sqrt().float().view(-1, 1, 1, 1, 1)

    def _power(self, timesteps: Tensor) -> Tensor:
        """alpha_tau squared, shaped as timesteps; the table is copied to a device once."""
        on = timesteps.device
        if on not in self._signal_power:
            self._signal_power[on] = self._signal_power[torch.device("cpu")].to(on)
        return self._signal_power[on][timesteps]

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_tau = alpha x + sigma eps; one timestep per video, `b t c h w` (§2)."""
        return self.alpha(timesteps) * clean + self.sigma(timesteps) * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is asked for: eps, or v = alpha eps - sigma x (Eq. 1)."""
        if self.predicts == "epsilon":
            return noise
        return self.alpha(timesteps) * noise - self.sigma(timesteps) * clean

    def clean_from(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The clean video a prediction stands for.

        epsilon:  x = (z - sigma eps) / alpha
        v:        x = alpha z - sigma v,  since alpha^2 + sigma^2 = 1
        """
        alpha, sigma = self.alpha(timesteps), self.sigma(timesteps)
        if self.predicts == "epsilon":
            return (noisy - sigma * prediction) / alpha
        return alpha * noisy - sigma * prediction


def _check(trained: Trained, where: str) -> None:
    if trained.prediction_type not in PREDICTION_TYPES:
        raise UserError(
            f"{where} predicts {trained.prediction_type!r}; expected "
            f"{' or '.join(PREDICTION_TYPES)}. Use an image model trained with one of them."
        )
    betas, timesteps = trained.trained_betas, trained.num_train_timesteps
    if betas is None and trained.beta_schedule is None:
        raise UserError(
            f"{where} says no noise levels: it has neither beta_schedule nor trained_betas; copy "
            "the file of the model it belongs to."
        )
    if betas is not None and len(betas) != timesteps:
        raise UserError(
            f"{where} has {len(betas)} trained_betas for num_train_timesteps = {timesteps}; "
            "expected one for each: copy the file of the model it belongs to."
        )
