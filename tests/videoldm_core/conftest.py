"""Image models small enough to run in milliseconds, and batches for them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from videoldm_core.data.loader import Batch
from videoldm_core.models.image import AutoencoderConfig, UNetConfig
from videoldm_core.objectives.denoising import ScheduleConfig

TEXT = (4, 8)  # l d


@pytest.fixture(scope="session")
def small_unet() -> UNetConfig:
    """Two levels, both with attention."""
    return UNetConfig(
        widths=(16, 32), attention=(True, True), layers_per_block=1, heads=2, text=8, groups=8
    )


@pytest.fixture(scope="session")
def image_model(small_unet: UNetConfig, tmp_path_factory: pytest.TempPathFactory):
    """Parts of an image model on disk: unet, scheduler, and vae that halves height and width."""
    folder = tmp_path_factory.mktemp("image model")
    parts: dict[str, Path] = {name: folder / name for name in ("unet", "scheduler", "vae")}
    small_unet.build(0).save_pretrained(parts["unet"])
    ScheduleConfig(predicts="v_prediction").build().save(parts["scheduler"])
    AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4).build(0).save_pretrained(
        parts["vae"]
    )
    return parts


@pytest.fixture(scope="session")
def released(image_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """Folders of untrained stages by name, and of a text tower; see releases.py."""
    from tests.videoldm_core.releases import publish_all

    return publish_all(tmp_path_factory.mktemp("released"), image_model)


@pytest.fixture
def random_batch() -> Callable[..., Batch]:
    """random_batch((b, t, c, h, w)): a batch in [-1, 1]; `first_id` numbers its samples."""

    def make(shape: tuple[int, ...], *, first_id: int = 0, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return Batch(
            clip=torch.randn(shape, generator=generator).clamp(-1, 1),
            text=torch.randn(shape[0], *TEXT, generator=generator),
            stride_index=torch.arange(shape[0]) % 2,
            sample_ids=torch.arange(first_id, first_id + shape[0]),
        )

    return make
