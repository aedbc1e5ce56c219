"""What a network that makes frames minimises: an error, alone or against a critic of its own.

`Alone` and `Adversary` are used alike; with a critic there is one more player.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from videoldm_core.data.loader import Batch
from videoldm_core.models.discriminator import hinge_loss
from videoldm_core.training.engine import OptimizerConfig
from videoldm_core.training.players import Player, Turn, trainable_parameters

Error = Callable[[Tensor], Tensor]  # made frames -> their mean error, a scalar


class Alone:
    """The error is all there is."""

    def __init__(self) -> None:
        self.players: list[Player] = []

    def loss(
        self, made: Tensor, real: Tensor, error: Error, batch: Batch, turn: Turn
    ) -> tuple[Tensor, float, dict[str, float]]:
        """The loss to minimise, the error of the made frames, and numbers to report."""
        loss = error(made)
        return loss, loss.item(), {}


class Adversary:
    """The error, plus the critic's opinion with adaptive weight once it has started.

    Args:
        critic: scores patches of samples; the second player.
        weight: of its opinion, beside the adaptive weight.
        starts_at: first step of the adversarial term; the network settles before.
    """

    def __init__(
        self, critic: nn.Module, *, weight: float, starts_at: int, optimizer: OptimizerConfig
    ) -> None:
        self.critic, self._weight, self._starts_at = critic, weight, starts_at
        self._judged: dict[int, tuple[Tensor, Tensor]] = {}  # by the batch's first number
        self.players = [
            Player(
                name="critic",
                module=critic,
                trainable=trainable_parameters(critic, [critic]),
                loss=self.critic_loss,
                optimizer=optimizer,
                starts_at=starts_at,
            )
        ]

    def loss(
        self, made: Tensor, real: Tensor, error: Error, batch: Batch, turn: Turn
    ) -> tuple[Tensor, float, dict[str, float]]:
        """The loss to minimise, the error of the made frames, and numbers to report.

        The losses are differentiated at the made frames first, and the network then by the sum of
        those gradients: DeepSpeed allows one backward pass through an engine's output, and the
        adaptive weight needs the two gradients apart.

        Args:
            made, real: samples of the critic (frames or videos), in [-1, 1], float32.
        """
        leaf = made.detach().requires_grad_()
        value, samples = error(leaf), len(made)
        (gradient,) = torch.autograd.grad(value * samples, leaf)
        numbers = {}
        if turn.step >= self._starts_at:
            self._judged[int(batch.sample_ids[0])] = real, made.detach()
            scores = self.critic(leaf).float()
            opinion = -scores.mean(dim=tuple(range(1, scores.ndim)))
            (by_critic,) = torch.autograd.grad(opinion.sum(), leaf)
            weight = self._weight * adaptive_weight(gradient, by_critic)
            gradient = gradient + weight.view(-1, *[1] * (made.ndim - 1)) * by_critic
            numbers["opinion"] = opinion.mean().item()
        return (made * gradient).sum() / samples, value.item(), numbers

    def critic_loss(self, net: Any, batch: Batch, turn: Turn) -> tuple[Tensor, dict[str, float]]:
        """Hinge loss on the real samples and on what was made of them in the network's own turn.

        That turn is over for every micro batch of the step when this one begins, so what each of
        them saw is kept until it is judged here.
        """
        real, fake = self._judged.pop(int(batch.sample_ids[0]))
        real, fake = net(torch.cat([real, fake])).float().chunk(2)
        loss = hinge_loss(real, fake)
        return loss, {"critic": loss.item()}


def adaptive_weight(by_error: Tensor, by_critic: Tensor) -> Tensor:
    """How much the critic counts per sample: |grad of the error| / |grad of the opinion|, (b).

    Deviation: the gradients are taken at the decoded frames, per sample, not at the last layer's
    weights over the batch (Esser 2021, Eq. 7). The ratio says the same, needs no weight that ZeRO-3
    has partitioned, and is the same however a batch is split over processes.

    Args:
        by_error, by_critic: gradients at the decoded frames, b ... (frames or videos).
    """
    ratio = by_error.flatten(1).norm(dim=1) / (by_critic.flatten(1).norm(dim=1) + 1e-4)
    return ratio.clamp(max=1e4)
