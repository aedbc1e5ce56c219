"""The exponential moving average of the weights that train; what a stage publishes."""

import torch
from torch import Tensor, nn

from videoldm_core.training.engine import full_tensors
from videoldm_core.training.partitions import forget_whole, local_part, local_tensors


class Ema:
    """Averages what this process holds of each parameter, so it is sharded as the weights are.

    Args:
        parameters: the trainable ones by name.
        decay: of the average; early min(decay, (1 + step) / (10 + step)) forgets the start.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._average = {name: t.clone() for name, t in local_tensors(parameters).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after step `step` (counted from 1)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages = list(self._average.values())
        current = [t.to(averages[0].dtype) for t in local_tensors(self._parameters).values()]
        torch._foreach_lerp_(averages, current, 1 - decay)

    def full(self) -> dict[str, Tensor]:
        """The average of every parameter, whole; collective and kept as `full_tensors`."""
        self.swap()
        try:
            return full_tensors(self._parameters)
        finally:
            self.swap()

    def restore(self, full: dict[str, Tensor]) -> None:
        """Takes an average that `full` returned, on any number of processes."""
        for name, parameter in self._parameters.items():
            self._average[name] = local_part(parameter, full[name]).clone()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average and the weights; calling it again undoes it."""
        forget_whole(self._parameters)
        for name, local in local_tensors(self._parameters).items():
            kept = local.clone()
            local.copy_(self._average[name])
            self._average[name] = kept
