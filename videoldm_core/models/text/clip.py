"""The text encoder of a Stable Diffusion model as the project's own text tower.

Stable Diffusion folders hold it in `text_encoder/` in the layout of the transformers library, which
is not needed to read it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videoldm_core.errors import UserError
from videoldm_core.models.pretrained.folders import TRANSFORMERS, read_json, read_weights
from videoldm_core.models.pretrained.lora import add_lora
from videoldm_core.models.text.encoder import TEXT_KEYS, Padding, TextConfig, TextTower
from videoldm_core.models.weights import check_floating
from videoldm_core.records import parse_record, shown

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
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
_SHAPE = {  # our names and transformers'
    "context_length": "max_position_embeddings",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "layers": "num_hidden_layers",
    "vocab_size": "vocab_size",
}
_FIRST, _SECOND = "transformer.", "model."  # prefixes in single files, by version
_HEAD_WIDTH = 64
_CUT = 23  # layers of the second version's encoder in folders, and in files made of them: of 24
_PADDING: dict[str, Padding] = {
    "!": "zero",  # token 0 of CLIP's vocabulary
    "<|endoftext|>": "end_of_text",
}


def load_clip_text(model: Path, *, loras: Sequence[Path] = ()) -> TextTower:
    """The text tower of a Stable Diffusion folder.

    Args:
        model: the folder that holds text_encoder/ and tokenizer/.
        loras: LoRA files whose matrices for the text encoder, if any, are added.

    Raises:
        UserError: a file is missing, damaged or describes another kind of text encoder.
    """
    folder = model / "text_encoder"
    described = read_json(folder / "config.json", "a Stable Diffusion folder describes it there")
    activation = described.get("hidden_act")
    if activation not in ("gelu", "quick_gelu"):
        raise UserError(
            f"The text encoder in {str(folder)!r} has hidden_act {shown(activation)}; expected "
            "'gelu' or 'quick_gelu', as in Stable Diffusion 1.x and 2.x."
        )
    config = _config(described, activation, model)
    weights, path = read_weights(folder, TRANSFORMERS)
    where = f"text encoder {str(path)!r}"
    return _tower(open_clip_layout(weights, where=where), config, where=where, loras=loras)


def _config(described: Mapping[str, Any], activation: str, model: Path) -> TextConfig:
    where = str(model / "text_encoder" / "config.json")
    for theirs in _SHAPE.values():
        if not isinstance(described.get(theirs), int):
            raise UserError(
                f"{where!r} gives {shown(described.get(theirs))} as {theirs}, expected a whole "
                "number; give the folder of a Stable Diffusion model."
            )
    values = {ours: described[theirs] for ours, theirs in _SHAPE.items()}
    values |= {"activation": activation, "padding": _padding(model / "tokenizer")}
    return parse_record(TextConfig, values, where=f"the text encoder that {where!r} describes")


def tower_of_file(
    weights: Mapping[str, Tensor], *, where: str, loras: Sequence[Path] = ()
) -> TextTower:
    """The text tower of a model in one file, whose shape is read off the tensors.

    The second version reads the last but one of OpenCLIP's 24 layers. Its folders hold 23, and so
    do the files that converters make of folders, fine-tunes above all: there it is the last.

    Args:
        weights: by name without the file's own prefix: transformers' layout in version 1,
            OpenCLIP's in version 2.

    Raises:
        UserError: the file holds no text encoder, or one of another kind; names the first key.
    """
    is_first = any(name.startswith(_FIRST) for name in weights)
    prefix = _FIRST if is_first else _SECOND
    own = {name.removeprefix(prefix): t for name, t in weights.items() if _is_state(name)}
    if is_first:
        own = open_clip_layout(own, where=where)
    layers = {name.split(".")[2] for name in own if name.startswith("transformer.resblocks.")}
    if not layers or not {"token_embedding.weight", "positional_embedding"} <= own.keys():
        raise UserError(
            f"{where} holds no text encoder; expected an image model in one file with its own, "
            "or give a diffusers folder."
        )
    settings: dict[str, Any] = {"output": "last" if len(layers) == _CUT else "penultimate"}
    if is_first:
        settings = {"activation": "quick_gelu", "padding": "end_of_text"}
    positions, words = own["positional_embedding"].shape, own["token_embedding.weight"].shape
    if len(positions) != 2 or len(words) != 2:
        raise UserError(
            f"{where} holds embeddings of positions and tokens of the shapes {tuple(positions)} "
            f"and {tuple(words)}, expected two sides each; get the file again."
        )
    shape = {
        "context_length": positions[0],
        "width": positions[1],
        "heads": max(1, positions[1] // _HEAD_WIDTH),
        "layers": len(layers),
        "vocab_size": words[0],
    }
    config = parse_record(TextConfig, shape | settings, where=f"the text encoder of {where}")
    return _tower(own, config, where=where, loras=loras)


def _tower(
    weights: Mapping[str, Tensor], config: TextConfig, *, where: str, loras: Sequence[Path]
) -> TextTower:
    tower = TextTower.of_weights(config, weights, where=where)
    layers = _transformers_views(tower.transformer.state_dict())
    for lora in loras:
        add_lora(layers, lora, part="text_encoder")
    return tower


def _transformers_views(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of an OpenCLIP tower under transformers' names, as views of the same memory."""
    theirs = {ours: name for name, ours in _IN_A_LAYER.items()}
    views: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            continue
        layer = f"encoder.layers.{match[1]}"
        if match[2] == "attn.in_proj_weight":
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                views[f"{layer}.self_attn.{part}_proj.weight"] = rows
        elif match[2].removesuffix(".weight") in theirs:
            views[f"{layer}.{theirs[match[2].removesuffix('.weight')]}.weight"] = tensor
    return views


def _is_state(name: str) -> bool:
    """Whether a tensor decides hidden states; CLIP's projection behind them does not."""
    if name.startswith(_FIRST):
        return not name.endswith(("text_projection.weight", "logit_scale"))
    return name.removeprefix(_SECOND).startswith(TEXT_KEYS)


def open_clip_layout(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The same tensors under OpenCLIP's names; query, key and value become one matrix.

    Raises:
        UserError: a layer lacks one of the three, or they differ in shape; a tensor is not of
            floating point.
    """
    renamed: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        name = key.removeprefix("text_model.")
        if name == "embeddings.position_ids":
            continue  # 0, 1, 2, ...: older files carry it
        check_floating(key, tensor, where=where)
        if name in _OUTSIDE:
            renamed[_OUTSIDE[name]] = tensor
            continue
        match = _LAYER.fullmatch(name)
        block = f"transformer.resblocks.{match[1]}" if match else ""
        if match and match[2] in _IN_A_LAYER:
            renamed[f"{block}.{_IN_A_LAYER[match[2]]}.{match[3]}"] = tensor
        elif match and match[2].startswith("self_attn.") and match[2].endswith("_proj"):
            parts = projections.setdefault(f"{block}.attn.in_proj_{match[3]}", {})
            parts[match[2].removeprefix("self_attn.").removesuffix("_proj")] = tensor
        else:
            renamed[key] = tensor  # refused by name where the tower takes the weights
    joined = {key: _joined(parts, key, where) for key, parts in projections.items()}
    return renamed | joined


def _joined(parts: Mapping[str, Tensor], key: str, where: str) -> Tensor:
    """The matrices of query, key and value as one."""
    missing = [part for part in "qkv" if part not in parts]
    if missing:
        raise UserError(f"{where} lacks the {missing[0]}_proj that belongs into {key!r}.")
    shapes = {tuple(part.shape) for part in parts.values()}
    if len(shapes) > 1 or () in shapes:
        raise UserError(
            f"{where}: query, key and value that belong into {key!r} have the shapes "
            f"{' and '.join(map(str, sorted(shapes)))}, expected one; get the file again."
        )
    return torch.cat([parts[part] for part in "qkv"])


def _padding(tokenizer: Path) -> Padding:
    path = tokenizer / "special_tokens_map.json"
    if not path.is_file():  # transformers 5 and later write one file
        path = tokenizer / "tokenizer_config.json"
    token = read_json(path, "it says what captions are padded with").get("pad_token")
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or content not in _PADDING:
        raise UserError(
            f"{str(path)!r} pads captions with {shown(content)}; expected one of "
            f"{', '.join(map(repr, _PADDING))}, as in Stable Diffusion 1.x and 2.x."
        )
    return _PADDING[content]
