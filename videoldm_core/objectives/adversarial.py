"""What a network that makes frames minimises: an error, alone or against a critic of its own.

`Alone` and `Adversary` are used alike; with a critic there is one more player.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight, conv3d_weight

from videoldm_core.data.loader import Batch
from videoldm_core.models.discriminator import hinge_loss
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.train_module import Player, Turn, trainable_parameters

Error = Callable[[Tensor], Tensor]  # made frames -> their mean error, a scalar

MOST_ADAPTIVE_WEIGHT = 1e4


@dataclass(frozen=True, kw_only=True)
class Made:
    """Samples that a network made, and how its last layer made them.

    Attributes:
        samples: frames n 3 H W or videos b t 3 H W in [-1, 1], float32.
        layer: the last convolution, over places or over time and places.
        seen: what it was given, n c H W or b c t H W.
    """

    samples: Tensor
    layer: nn.Conv2d | nn.Conv3d
    seen: Tensor

    def weight_gradients(self, by_samples: Tensor) -> Tensor:
        """Gradients of the last layer's weights, one per sample, flat: b k.

        They take what the layer was given and no weight, which ZeRO-3 may have put elsewhere.

        Args:
            by_samples: gradients at the samples, shaped like them.
        """
        layer = self.layer
        shape = (layer.out_channels, layer.in_channels, *layer.kernel_size)
        of_weights: Any = conv2d_weight
        if isinstance(layer, nn.Conv3d):
            of_weights, by_samples = conv3d_weight, by_samples.transpose(1, 2)
        pairs = zip(self.seen.detach().float().split(1), by_samples.split(1), strict=True)
        gradients = [
            of_weights(seen, shape, by_sample, padding=layer.padding) for seen, by_sample in pairs
        ]
        return torch.stack([gradient.flatten() for gradient in gradients])


class Alone:
    """The error is all there is."""

    def __init__(self) -> None:
        self.players: list[Player] = []

    def loss(
        self, made: Made, real: Tensor, error: Error, batch: Batch, turn: Turn
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss to minimise, the error of the made frames, and numbers to report."""
        loss = error(made.samples)
        return loss, loss.detach(), {}


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
        self, made: Made, real: Tensor, error: Error, batch: Batch, turn: Turn
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss to minimise, the error of the made frames, and numbers to report.

        The losses are differentiated at the made frames first, and the network then by the sum of
        those gradients: DeepSpeed allows one backward pass through an engine's output, and the
        adaptive weight needs the two gradients apart.

        Args:
            real: like the samples that were made.
        """
        samples = made.samples
        leaf, count = samples.detach().requires_grad_(), len(samples)
        value = error(leaf)
        (gradient,) = torch.autograd.grad(value * count, leaf)
        numbers = {}
        if turn.step >= self._starts_at:
            self._judged[int(batch.sample_ids[0])] = real, samples.detach()
            scores = self.critic(leaf).float()
            opinion = -scores.mean(dim=tuple(range(1, scores.ndim)))
            (by_critic,) = torch.autograd.grad(opinion.sum(), leaf)
            weight = self._weight * adaptive_weight(
                made.weight_gradients(gradient), made.weight_gradients(by_critic)
            )
            gradient = gradient + weight.view(-1, *[1] * (samples.ndim - 1)) * by_critic
            numbers = {"opinion": opinion.detach().mean(), "critic_weight": weight.mean()}
        return (samples * gradient).sum() / count, value.detach(), numbers

    def critic_loss(self, net: Any, batch: Batch, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        """Hinge loss on the real samples and on what was made of them in the network's own turn.

        That turn is over for every micro batch of the step when this one begins, so what each of
        them saw is kept until it is judged here.
        """
        real, fake = self._judged.pop(int(batch.sample_ids[0]))
        real, fake = net(torch.cat([real, fake])).float().chunk(2)
        loss = hinge_loss(real, fake)
        return loss, {"critic": loss.detach()}


def adaptive_weight(by_error: Tensor, by_critic: Tensor) -> Tensor:
    """How much the critic counts: |gradient of the error| / |gradient of the opinion|, (b).

    Of the last layer's weights (Esser 2021, Eq. 7). Deviation: per sample, not over the batch, so
    that it is the same however a batch is split over processes and micro batches.

    Args:
        by_error, by_critic: gradients of the last layer's weights per sample, b k.
    """
    ratio = by_error.norm(dim=1) / (by_critic.norm(dim=1) + 1e-4)
    return ratio.clamp(max=MOST_ADAPTIVE_WEIGHT)
