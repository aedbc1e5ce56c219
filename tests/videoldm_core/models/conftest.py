"""Small image models laid out as the published families."""

from collections.abc import Callable

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel

from tests.videoldm_core.single_files import unet_like, vae_like


@pytest.fixture(scope="session")
def small_unet() -> Callable[[str], UNet2DConditionModel]:
    """small_unet("sd1"): a UNet laid out as that family's, with few channels."""
    return unet_like


@pytest.fixture(scope="session")
def small_vae() -> Callable[[], AutoencoderKL]:
    """small_vae(): an autoencoder with the four levels of Stable Diffusion's."""
    return lambda: vae_like("sd1")
