"""Adds a LoRA fine-tune to the weights it was trained for:  W + (alpha / r) up down  (Hu 2021).

Files name a layer in one of three ways: as diffusers does today (unet.LAYER.lora_A.weight), as it
did (unet.LAYER.lora.down.weight), and as kohya does (lora_unet_LAYER.lora_down.weight with
underscores for dots, and an alpha).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from videoldm_core.errors import UserError
from videoldm_core.models.weights import read_checkpoint

Part = Literal["unet", "text_encoder"]
_KOHYA: dict[str, str] = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_DOWN = (".lora_A.weight", ".lora.down.weight", ".lora_down.weight", "_lora.down.weight")
_UP = (".lora_B.weight", ".lora.up.weight", ".lora_up.weight", "_lora.up.weight")


@torch.no_grad()
def add_lora(weights: Mapping[str, Tensor], path: Path, *, part: Part) -> int:
    """Adds what `path` holds for one part of an image model to `weights`, in place.

    Args:
        weights: the part's own tensors by name, text encoders in transformers' layout.

    Returns:
        How many layers it changed; 0: the file holds nothing for this part.

    Raises:
        UserError: the file names a layer that the part does not have, or has a matrix too few or of
            another shape.
    """
    layers = {_plain(n.removesuffix(".weight")): w for n, w in weights.items() if ".weight" in n}
    down, up, alphas = _matrices(read_checkpoint(path), part)
    for name in sorted(down.keys() | up.keys()):
        if name not in layers:
            raise UserError(f"{str(path)!r}: the {part} has no layer {name!r}; use its own model.")
        if name not in up or name not in down:
            raise UserError(f"{str(path)!r} holds one matrix for {name!r}, expected two.")
        weight, added = layers[name], _product(up[name].float(), down[name].float())
        if added.numel() != weight.numel():
            raise UserError(
                f"{str(path)!r}: the matrices of {name!r} give {tuple(added.shape)}, expected "
                f"{tuple(weight.shape)}; it belongs to another model."
            )
        rank = down[name].shape[0]
        scale = alphas.get(name, float(rank)) / rank
        weight += scale * added.view_as(weight).to(weight)
    return len(down)


def _matrices(
    tensors: dict[str, Tensor], part: Part
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """Matrices and alphas of one part, by the layer's name with underscores for dots."""
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        name = _of_part(key, part)
        if name is None:
            continue
        if name.endswith(".alpha"):
            alphas[_plain(name.removesuffix(".alpha"))] = float(tensor)
        for endings, found in ((_DOWN, down), (_UP, up)):
            for ending in endings:
                if name.endswith(ending):
                    found[_plain(name.removesuffix(ending))] = tensor
                    break
    return down, up, alphas


def _of_part(key: str, part: Part) -> str | None:
    for prefix in (f"{part}.", _KOHYA[part]):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return None


def _plain(name: str) -> str:
    """A layer's name as kohya writes it; attention processors are part of older diffusers names."""
    plain = re.sub(r"\.processor\b", "", name).replace(".", "_").removeprefix("text_model_")
    return re.sub(r"_to_out$", "_to_out_0", plain)


def _product(up: Tensor, down: Tensor) -> Tensor:
    """up @ down for matrices; for convolutions up is 1x1 and down carries the kernel."""
    return up.flatten(1) @ down.flatten(1)
