"""Random numbers that belong to a sample, not to a process.

Every sample of every step has its own generator, so a batch split over any number of ranks, or
repeated after a crash, draws the same numbers.
"""

import hashlib

import torch
from torch import Tensor


class SampleRng:
    """Draws for one batch: row i depends on (seed, purpose, sample_ids[i]) and the order of draws.

    Args:
        sample_ids: global number of each sample, (b).
        purpose: keeps the draws of two users of one batch apart ("denoiser", "critic").
    """

    def __init__(self, seed: int, purpose: str, sample_ids: Tensor) -> None:
        self.generators = [
            torch.Generator().manual_seed(_mix(seed, purpose, int(i))) for i in sample_ids
        ]

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal values, (b, *shape)."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def uniform(self) -> Tensor:
        """One value in [0, 1) per sample, (b)."""
        return torch.stack([torch.rand((), generator=g) for g in self.generators])

    def integers(self, low: int, high: int) -> Tensor:
        """One integer in [low, high) per sample, (b)."""
        return torch.stack([torch.randint(low, high, (), generator=g) for g in self.generators])

    def choice(self, weights: tuple[float, ...]) -> Tensor:
        """One index per sample, drawn with these weights, (b)."""
        p = torch.tensor(weights)
        return torch.cat([torch.multinomial(p, 1, generator=g) for g in self.generators])


def _mix(seed: int, purpose: str, sample: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
