"""What a file of LoRA matrices says: for which layers of which part, and how strongly.

Trainers name a layer in many ways, LAYER being its place in the part:

    unet.LAYER.lora_A.weight                 diffusers today; alpha in the file's metadata
    unet.LAYER.lora.down.weight              diffusers before, also LAYER.processor.to_q_lora.down
    text_encoder.LAYER.lora_linear_layer...  the same for text encoders, also LAYER.to_q_lora.down
    base_model.model.LAYER.lora_A.weight     peft; alpha in adapter_config.json beside the file
    lora_unet_LAYER.lora_down.weight         kohya: underscores for dots, and LAYER.alpha
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from videoldm_core.errors import UserError
from videoldm_core.models.folders import read_json
from videoldm_core.models.weights import check_floating, read_checkpoint, read_metadata

Part = Literal["unet", "text_encoder"]
_PREFIXES: dict[str, Part] = {
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
}
_PEFT = "base_model.model."
_BARE = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding)\.")
_ROLES = {"lora_A": "down", "lora_B": "up"}
_KEY = re.compile(
    r"(?P<layer>.+?)"
    r"((\.lora|\.lora_linear_layer|_lora)\.(?P<old>down|up|alpha)"
    r"|\.(?P<new>lora_A|lora_B|lora_down|lora_up|alpha))(?P<weight>\.weight)?"
)
_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """What is added to one layer:  scale * up @ down."""

    down: Tensor  # r in, of convolutions r in kh kw
    up: Tensor  # out r, of convolutions out r 1 1
    scale: float  # alpha / r

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]


def read_lora(path: Path, part: Part) -> dict[str, LowRank]:
    """What the file holds for one part of an image model, by `plain_name` of the layer.

    Raises:
        UserError: the file is not whole, or holds for this part anything but pairs of matrices and
            their alphas; names the key.
    """
    tensors, where = read_checkpoint(path), repr(str(path))
    found: dict[str, dict[str, Tensor]] = {}
    places: dict[str, str] = {}
    for key, tensor in tensors.items():
        of_part, name = _part_of(key, where)
        if of_part != part:
            continue
        layer, role = _layer_and_role(name, key, where)
        places[plain_name(layer, part)] = layer
        matrices = found.setdefault(plain_name(layer, part), {})
        if role in matrices:
            raise UserError(f"{where} holds {key!r} under two names; get the file again.")
        matrices[role] = tensor
        if role != "alpha":
            check_floating(key, tensor, where=where)
    is_peft = any(_PEFT in key for key in tensors)
    settings = _settings(path, part, is_peft=is_peft) if found else {}
    return {
        name: _low_rank(matrices, name, settings=settings, layer=places[name], where=where)
        for name, matrices in found.items()
    }


def plain_name(layer: str, part: Part) -> str:
    """A layer's name as kohya writes it, from any of the others."""
    name = re.sub(r"\.processor\b", "", layer)
    if part == "text_encoder":
        last = re.search(r"to_(q|k|v|out)$", name)
        name = name.removesuffix(last[0]) + _OF_TEXT[last[0]] if last else name
    plain = name.replace(".", "_").removeprefix("text_model_")
    return re.sub(r"_to_out$", "_to_out_0", plain)


def _part_of(key: str, where: str) -> tuple[Part, str]:
    """The part that a key is for, and the key without the names of part and trainer."""
    for prefix, part in _PREFIXES.items():
        if key.startswith(prefix):
            return part, key.removeprefix(prefix).removeprefix(_PEFT)
    name = key.removeprefix(_PEFT)
    if name.startswith("text_model."):
        return "text_encoder", name
    if name != key or _BARE.match(name):
        return "unet", name
    raise UserError(
        f"{where} holds {key!r}, which is no LoRA matrix of the unet or the text encoder; "
        "expected names like 'unet.….lora_A.weight' or 'lora_unet_….lora_down.weight'."
    )


def _layer_and_role(name: str, key: str, where: str) -> tuple[str, str]:
    match = _KEY.fullmatch(name)
    role = (match["old"] or match["new"]) if match else ""
    if match is None or (role == "alpha") == bool(match["weight"]):
        raise UserError(
            f"{where} holds {key!r}, which is no matrix or alpha of a plain LoRA; DoRA, LoHa, LoKr "
            "and whole differences cannot be added: give the model with it merged in."
        )
    return match["layer"], _ROLES.get(role, role.removeprefix("lora_"))


def _low_rank(
    matrices: Mapping[str, Tensor], name: str, *, settings: dict, layer: str, where: str
) -> LowRank:
    if not {"down", "up"} <= matrices.keys():
        raise UserError(f"{where} holds one matrix for {name!r}, expected two; get it again.")
    down, up = matrices["down"], matrices["up"]
    shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
    if not {down.ndim, up.ndim} <= {2, 4} or 0 in down.shape:
        raise UserError(
            f"{where}: the matrices of {name!r} have the shapes {shapes}, expected 2 or 4 sides."
        )
    if down.shape[0] != up.shape[1]:
        raise UserError(
            f"{where}: the matrices of {name!r} have the shapes {shapes}, whose ranks "
            f"{down.shape[0]} and {up.shape[1]} differ; get the file again."
        )
    rank = down.shape[0]
    alpha = matrices.get("alpha")
    if alpha is None:
        return LowRank(down=down, up=up, scale=_scale_told(settings, layer, rank, where))
    if alpha.numel() != 1:
        raise UserError(f"{where}: the alpha of {name!r} is {alpha.numel()} values, expected one.")
    return LowRank(down=down, up=up, scale=alpha.item() / rank)


def _settings(path: Path, part: Part, *, is_peft: bool) -> dict[str, Any]:
    """How the file was trained, as far as it is said outside of its tensors."""
    told = read_metadata(path).get("lora_adapter_metadata")
    if told is not None:
        return _of_one_part(told, part, repr(str(path)))
    if not is_peft:
        return {}
    return read_json(path.parent / "adapter_config.json", "it says the alpha of a peft file")


def _of_one_part(told: str, part: Part, where: str) -> dict[str, Any]:
    """Those of the settings "unet.lora_alpha" ... that are the part's; all where none is named."""
    try:
        values = json.loads(told)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(
            f"{where}: its lora_adapter_metadata is not a JSON object; get the file again."
        )
    if not any(name.startswith(tuple(_PREFIXES)) for name in values):
        return values
    return {k.removeprefix(f"{part}."): v for k, v in values.items() if k.startswith(f"{part}.")}


def _scale_told(settings: Mapping[str, Any], layer: str, rank: int, where: str) -> float:
    """alpha / r (Hu 2021), or alpha / sqrt(r) where trained so; 1 where nobody says an alpha."""
    alpha = settings.get("lora_alpha", rank)
    patterns = settings.get("alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        ending = pattern.removeprefix("^")
        if layer == ending or layer.endswith(f".{ending}"):
            alpha = value
    if not isinstance(alpha, int | float):
        raise UserError(f"{where}: its lora_alpha is {alpha!r}, expected a number.")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
