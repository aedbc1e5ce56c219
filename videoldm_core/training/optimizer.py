"""The optimizer of every player, and its numbers in a stage's row."""

import torch
from pydantic import Field
from torch import nn

from videoldm_core.records import Decay, Record


class OptimizerConfig(Record):
    """AdamW and what is done to its gradients."""

    lr: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    clip_norm: float = Field(default=1.0, gt=0)  # DeepSpeed would clip at 1.0 unasked


def adamw(trainable: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over `trainable`, parameters or ZeRO's partitions of them."""
    # Fused: one pass over memory and no copy of the weights on the way.
    return torch.optim.AdamW(
        trainable, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
