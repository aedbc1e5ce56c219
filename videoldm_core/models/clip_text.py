"""The text encoder of a Stable Diffusion model as the project's own text tower.

Stable Diffusion folders hold it in `text_encoder/` in the layout of the transformers library, which
is not needed to read it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from videoldm_core.errors import UserError
from videoldm_core.models.text import TextConfig, TextTower
from videoldm_core.models.weights import read_checkpoint

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_A_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OUTSIDE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_PADDING: dict[str, Literal["zero", "end_of_text"]] = {
    "!": "zero",  # token 0 of CLIP's vocabulary
    "<|endoftext|>": "end_of_text",
}


def load_clip_text(model: Path) -> TextTower:
    """The text tower of a Stable Diffusion folder.

    Args:
        model: the folder that holds text_encoder/ and tokenizer/.

    Raises:
        UserError: a file is missing, damaged or describes another kind of text encoder.
    """
    folder = model / "text_encoder"
    described = _read_json(folder / "config.json", "a Stable Diffusion folder describes it there")
    activation = described.get("hidden_act")
    if activation not in ("gelu", "quick_gelu"):
        raise UserError(
            f"The text encoder in {str(folder)!r} has hidden_act {activation!r}; expected 'gelu' "
            "or 'quick_gelu', as in Stable Diffusion 1.x and 2.x."
        )
    try:
        config = TextConfig(
            context_length=described["max_position_embeddings"],
            width=described["hidden_size"],
            heads=described["num_attention_heads"],
            layers=described["num_hidden_layers"],
            vocab_size=described["vocab_size"],
            activation=activation,
            padding=_padding(model / "tokenizer"),
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{str(folder / 'config.json')!r} does not describe a CLIP text encoder ({error}); "
            "give the folder of a Stable Diffusion model."
        ) from error
    path, older = folder / "model.safetensors", folder / "pytorch_model.bin"
    if older.is_file() and not path.is_file():
        path = older
    return tower_of_clip(read_checkpoint(path), config, where=f"text encoder {str(path)!r}")


def tower_of_clip(weights: Mapping[str, Tensor], config: TextConfig, *, where: str) -> TextTower:
    """A text tower with weights that are laid out as in transformers' CLIPTextModel.

    Raises:
        UserError: names the first key that is missing, unknown or of another shape.
    """
    tower = TextTower.build(config)
    tower.take(open_clip_layout(weights, where=where), where=where)
    return tower


def open_clip_layout(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The same tensors under OpenCLIP's names; query, key and value become one matrix.

    Raises:
        UserError: a layer lacks one of the three.
    """
    renamed: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        name = key.removeprefix("text_model.")
        if name == "embeddings.position_ids":
            continue  # 0, 1, 2, ...: older files carry it
        if name in _OUTSIDE:
            renamed[_OUTSIDE[name]] = tensor
            continue
        match = _LAYER.fullmatch(name)
        block = f"transformer.resblocks.{match[1]}" if match else ""
        if match and match[2] in _IN_A_LAYER:
            renamed[f"{block}.{_IN_A_LAYER[match[2]]}.{match[3]}"] = tensor
        elif match and match[2].startswith("self_attn.") and match[2].endswith("_proj"):
            joined = projections.setdefault(f"{block}.attn.in_proj_{match[3]}", {})
            joined[match[2].removeprefix("self_attn.").removesuffix("_proj")] = tensor
        else:
            renamed[key] = tensor  # refused by name where the tower takes the weights
    for key, parts in projections.items():
        missing = [part for part in "qkv" if part not in parts]
        if missing:
            raise UserError(f"{where} lacks the {missing[0]}_proj that belongs into {key!r}.")
        renamed[key] = torch.cat([parts[part] for part in "qkv"])
    return renamed


def _padding(tokenizer: Path) -> Literal["zero", "end_of_text"]:
    path = tokenizer / "special_tokens_map.json"
    token = _read_json(path, "it says what captions are padded with").get("pad_token")
    content = token.get("content") if isinstance(token, dict) else token
    if content not in _PADDING:
        raise UserError(
            f"{str(path)!r} pads captions with {content!r}; expected one of "
            f"{', '.join(map(repr, _PADDING))}, as in Stable Diffusion 1.x and 2.x."
        )
    return _PADDING[content]


def _read_json(path: Path, why: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read {str(path)!r} ({type(error).__name__}): {why}; get the folder again."
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{str(path)!r} holds {type(values).__name__}, expected an object.")
    return values
