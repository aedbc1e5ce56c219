"""Batches for small image models."""

from collections.abc import Callable

import pytest
import torch

from videoldm_core.data.loader import Batch

TEXT = (4, 8)  # l d


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
