"""Adds a LoRA fine-tune to the weights it was trained for:  W + (alpha / r) up down  (Hu 2021)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from videoldm_core.errors import UserError
from videoldm_core.models.pretrained.lora_file import LowRank, plain_name, read_lora
from videoldm_core.models.pretrained.lora_scale import Part
from videoldm_core.models.weights import check_floating


@torch.no_grad()
def add_lora(weights: Mapping[str, Tensor], path: Path, *, part: Part) -> int:
    """Adds what `path` holds for one part of an image model to `weights`, in place.

    Args:
        weights: the part's own tensors by name in float32, text encoders in transformers' layout.

    Returns:
        How many layers it changed; 0: the file holds nothing for this part.

    Raises:
        UserError: the file names a layer that the part does not have, has a matrix too few or of
            another shape, or holds more than LoRA matrices.
    """
    layers = {
        plain_name(name.removesuffix(".weight"), part): (name, weight)
        for name, weight in weights.items()
        if name.endswith(".weight")
    }
    added = read_lora(path, part)
    for name, low_rank in sorted(added.items()):
        if name not in layers:
            raise UserError(f"{str(path)!r}: the {part} has no layer {name!r}; use its own model.")
        key, weight = layers[name]
        check_floating(key, weight, where=f"The {part}")
        assert weight.dtype == torch.float32, f"{key} is {weight.dtype}: sums would be rounded"
        _check_shapes(low_rank, weight, name, where=repr(str(path)))
        weight += low_rank.scale * _product(low_rank).view_as(weight)
    return len(added)


def _check_shapes(low_rank: LowRank, weight: Tensor, name: str, *, where: str) -> None:
    """Refuses matrices whose product has another shape; a 1x1 kernel may be left out or there."""
    outputs, inputs, *kernel = _with_kernel(weight)
    expected = (low_rank.rank, inputs, *kernel), (outputs, low_rank.rank, 1, 1)
    if (_with_kernel(low_rank.down), _with_kernel(low_rank.up)) != expected:
        raise UserError(
            f"{where}: the matrices of {name!r} have the shapes {tuple(low_rank.down.shape)} and "
            f"{tuple(low_rank.up.shape)}, expected {expected[0][: weight.ndim]} and "
            f"{expected[1][: weight.ndim]}; it belongs to another model."
        )


def _with_kernel(tensor: Tensor) -> tuple[int, ...]:
    return (*tensor.shape, 1, 1)[:4]


def _product(low_rank: LowRank) -> Tensor:
    """up @ down for matrices; for convolutions up is 1x1 and down carries the kernel."""
    return low_rank.up.float().flatten(1) @ low_rank.down.float().flatten(1)
