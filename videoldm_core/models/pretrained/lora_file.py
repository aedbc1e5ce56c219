"""What a file of LoRA matrices says: for which layers of which part, and how strongly.

Trainers name a layer in many ways, LAYER being its place in the part:

    unet.LAYER.lora_A.weight                 diffusers today; alpha in the file's metadata
    unet.LAYER.lora.down.weight              diffusers before, also LAYER.processor.to_q_lora.down
    text_encoder.LAYER.lora_linear_layer...  the same for text encoders, also LAYER.to_q_lora.down
    base_model.model.LAYER.lora_A.weight     peft; alpha in adapter_config.json beside the file
    LAYER.lora_A.NAME.weight                 either, as it is in memory: NAME is the adapter's
    lora_unet_LAYER.lora_down.weight         kohya: underscores for dots, and LAYER.alpha
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from videoldm_core.errors import UserError
from videoldm_core.models.pretrained.lora_scale import Part, check_alpha, read_settings, scales_of
from videoldm_core.models.weights import check_floating, read_checkpoint

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
    r"|\.(?P<kohya>lora_down|lora_up|alpha)"
    r"|\.(?P<peft>lora_A|lora_B)(\.(?P<adapter>[^.]+)(?=\.weight))?)(?P<weight>\.weight)?"
)
_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
# Endings of other fine-tunes, by what they are; each would need arithmetic of its own.
_OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoRA with a middle matrix",
    "oft_": "OFT",
    "boft_": "BOFT",
    "diff": "whole difference",
    "lora_embedding_": "LoRA of embeddings",
    "bias": "LoRA with biases",
}
# Textual inversions that webui and OneTrainer pack into a LoRA's file: words of their own.
_EMBEDDINGS = "bundle_emb."


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
    """Low-rank changes that the file holds for one part of an image model, by `plain_name`.

    Textual inversions that are packed into it are passed over; `embeddings_in` names them.

    Raises:
        UserError: the file is not whole, holds several LoRAs, or holds for this part anything but
            pairs of matrices and their alphas; names the key.
    """
    tensors, where = read_checkpoint(path), repr(str(path))
    layers = _matrices_by_layer(tensors, part, where)
    pairs = {layer: _pair(matrices, layer, where) for layer, matrices in layers.items()}
    unscaled = {layer: pair.rank for layer, pair in pairs.items() if pair.alpha is None}
    is_peft = any(_PEFT in key for key in tensors)
    settings = read_settings(path, part, is_peft=is_peft) if pairs else {}
    scales = scales_of(settings, unscaled, where)
    return {
        plain_name(layer, part): LowRank(
            down=pair.down,
            up=pair.up,
            scale=scales[layer] if pair.alpha is None else pair.alpha / pair.rank,
        )
        for layer, pair in pairs.items()
    }


def embeddings_in(path: Path) -> list[str]:
    """Names of the textual inversions that are packed into a LoRA's file, which are not used.

    Raises:
        UserError: the file is not whole.
    """
    tensors = read_checkpoint(path, lambda name: name.startswith(_EMBEDDINGS))
    return sorted({key.removeprefix(_EMBEDDINGS).split(".")[0] for key in tensors})


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


def _matrices_by_layer(
    tensors: Mapping[str, Tensor], part: Part, where: str
) -> dict[str, dict[str, Tensor]]:
    """down, up and alpha of every layer of a part, by the layer's name as the file has it."""
    found: dict[str, dict[str, Tensor]] = {}
    named: dict[str, str] = {}  # plain name -> as the file has it
    adapters: set[str] = set()
    for key, tensor in tensors.items():
        if key.startswith(_EMBEDDINGS):
            continue
        of_part, name = _part_of(key, where)
        if of_part != part:
            continue
        layer, role, adapter = _parsed(name, key, where)
        adapters |= {adapter} if adapter else set()
        matrices = found.setdefault(named.setdefault(plain_name(layer, part), layer), {})
        if len(adapters) > 1:
            both = " and ".join(map(repr, sorted(adapters)))
            raise UserError(f"{where} holds the LoRAs {both}; save one of them in its own file.")
        if role in matrices:
            raise UserError(f"{where} holds {key!r} under two names; get the file again.")
        matrices[role] = tensor
        if role != "alpha":
            check_floating(key, tensor, where=where)
    return found


class _Name(NamedTuple):
    """What a key says without the names of part and trainer."""

    layer: str
    role: str  # down, up or alpha
    adapter: str | None


def _parsed(name: str, key: str, where: str) -> _Name:
    match = _KEY.fullmatch(name)
    role = (match["old"] or match["kohya"] or match["peft"]) if match else ""
    if match is None or (role == "alpha") == bool(match["weight"]):
        ending = key.split(".")[-3:]
        others = [k for start, k in _OTHERS.items() if any(e.startswith(start) for e in ending)]
        kind = f", but of the kind {others[0]!r}" if others else ""
        raise UserError(
            f"{where} holds {key!r}, which is no matrix or alpha of a plain LoRA{kind}; only plain "
            "LoRAs can be added: give the model with it merged in."
        )
    return _Name(match["layer"], _ROLES.get(role, role.removeprefix("lora_")), match["adapter"])


class _Pair(NamedTuple):
    """The two matrices of a layer, and its alpha if the file has one."""

    down: Tensor
    up: Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def _pair(matrices: Mapping[str, Tensor], name: str, where: str) -> _Pair:
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
    alpha = matrices.get("alpha")
    if alpha is None:
        return _Pair(down, up, None)
    if alpha.numel() != 1:
        raise UserError(f"{where}: the alpha of {name!r} is {alpha.numel()} values, expected one.")
    return _Pair(down, up, check_alpha(alpha.item(), f"alpha of {name!r}", where))
