"""The diffusion process as plain formulas: noising, targets and their inverses. Knows no network.

z_tau = alpha_tau x + sigma_tau eps,   sigma^2 = 1 - alpha^2                       (§2)
target y = eps  or  v = alpha_tau eps - sigma_tau x                                (Eq. 1)
"""

from pathlib import Path

from diffusers import DDIMScheduler
from torch import Tensor

from videoldm_core.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction")


class NoiseSchedule:
    """alpha and sigma for every timestep, and what the network predicts.

    Both come from the image model's own scheduler configuration, never from us: CompVis calls
    "linear" what diffusers calls "scaled_linear", and Stable Diffusion versions differ in what
    they predict.

    Attributes:
        config: the diffusers scheduler configuration it was made from.
        timesteps: how many noise levels there are; level `timesteps - 1` is the noisiest.
    """

    def __init__(self, config: dict) -> None:
        scheduler = DDIMScheduler.from_config(config)
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"The noise schedule predicts {scheduler.config.prediction_type!r}; expected "
                f"{' or '.join(PREDICTION_TYPES)}. Use an image model trained with one of them."
            )
        self.config = dict(scheduler.config)
        self.predicts: str = scheduler.config.prediction_type
        self.timesteps: int = scheduler.config.num_train_timesteps
        self._signal_power = scheduler.alphas_cumprod.double()

    @classmethod
    def load(cls, folder: Path) -> "NoiseSchedule":
        """Reads the `scheduler/` folder of a diffusers image model."""
        try:
            return cls(DDIMScheduler.load_config(folder, local_files_only=True))
        except OSError:
            raise UserError(
                f"No noise schedule in {str(folder)!r}; expected scheduler_config.json as in the "
                "scheduler/ folder of a diffusers model."
            ) from None

    def save(self, folder: Path) -> None:
        """Writes a `scheduler/` folder that diffusers reads."""
        DDIMScheduler.from_config(self.config).save_pretrained(folder)

    def has_levels_of(self, other: "NoiseSchedule") -> bool:
        """Whether every timestep has the same alpha and sigma as in `other`."""
        return self._signal_power.equal(other._signal_power)

    def alpha(self, timesteps: Tensor) -> Tensor:
        """Signal scale alpha_tau for timesteps (b,), shaped (b 1 1 1 1)."""
        power = self._signal_power.to(timesteps.device)[timesteps]
        return power.sqrt().float().view(-1, 1, 1, 1, 1)

    def sigma(self, timesteps: Tensor) -> Tensor:
        """Noise scale sigma_tau = sqrt(1 - alpha_tau^2) for timesteps (b,), shaped (b 1 1 1 1)."""
        power = self._signal_power.to(timesteps.device)[timesteps]
        return (1 - power).sqrt().float().view(-1, 1, 1, 1, 1)

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
