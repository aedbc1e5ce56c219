"""Modules in folders as diffusers and transformers write them: config, weights, and what is wrong.

The libraries themselves would fill what a file lacks with whatever the memory holds.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videoldm_core.errors import UserError, reason_of
from videoldm_core.models.pretrained.described import check_described, known_settings
from videoldm_core.models.weights import fill, read_checkpoint
from videoldm_core.records import shown
from videoldm_core.system import plain_json

# How files begin, in safetensors and in pickles.
DIFFUSERS = ("diffusion_pytorch_model", "diffusion_pytorch_model")
TRANSFORMERS = ("model", "pytorch_model")
CONFIG = "config.json"
# Attention of autoencoders before diffusers 0.12.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_PROJECTION = re.compile(r".*\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.weight")


def weight_file(names: Collection[str], stems: tuple[str, str]) -> str | None:
    """The best file of weights among the files of a folder: exact, whole and unpickled first.

    Args:
        stems: DIFFUSERS or TRANSFORMERS.

    Returns:
        A .safetensors or .bin file, or the index of one in several pieces; None: there is none.
    """
    return next((name for name in _candidates(stems) if name in names), None)


def load_module(folder: Path, *kinds: Any) -> Any:
    """The module of a diffusers folder, in float32 and evaluation mode, with every weight checked.

    Args:
        kinds: the classes it may be of.

    Raises:
        UserError: the folder holds no module, one of another kind, or weights that do not fit it;
            names the file, the key and what was expected.
    """
    kind, config = read_config(folder, *kinds)
    weights, path = read_weights(folder, DIFFUSERS)
    module = on_meta(kind, config, where=repr(str(folder / CONFIG)))
    fill(module, _as_today(weights), where=repr(str(path)))
    return module.eval()


def read_config(folder: Path, *kinds: Any) -> tuple[Any, dict[str, Any]]:
    """The class of a diffusers folder's module, and its configuration, within bounds.

    Args:
        kinds: the classes it may be of.

    Raises:
        UserError: the folder holds no module, one of another kind, or one out of bounds.
    """
    expected = " or ".join(kind.__name__ for kind in kinds)
    config = read_json(folder / CONFIG, f"expected the diffusers folder of an {expected}")
    name = config.get("_class_name")
    found = next((kind for kind in kinds if kind.__name__ == name), None)
    if found is None:
        raise UserError(
            f"{str(folder)!r} holds {shown(name)}, expected {expected}; give the "
            "folder of another part or model."
        )
    check_described(config, where=repr(str(folder / CONFIG)))
    return found, config


def on_meta(kind: Any, config: Mapping[str, Any], *, where: str) -> Any:
    """The module that a configuration within bounds describes, as shapes alone.

    Raises:
        UserError: it describes none.
    """
    try:
        with torch.device("meta"):
            return kind.from_config(known_settings(kind, config))
    except Exception as error:  # what diffusers raises depends on which value is nonsense
        raise UserError(
            f"{where} does not describe an {kind.__name__} "
            f"({type(error).__name__}: {reason_of(error)}); get the folder again."
        ) from error


def read_weights(folder: Path, stems: tuple[str, str]) -> tuple[dict[str, Tensor], Path]:
    """The tensors that a folder holds by name, and the file that they are from.

    Raises:
        UserError: the folder holds no weights, or a file of them is missing or not whole.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    chosen = weight_file(names, stems)
    if chosen is None:
        first, *others = _candidates(stems)
        raise UserError(
            f"No weights in {str(folder)!r}: expected {first}, or one of {', '.join(others)}; get "
            "the folder again."
        )
    path = folder / chosen
    if path.suffix != ".json":
        return read_checkpoint(path), path
    tensors: dict[str, Tensor] = {}
    for piece in _pieces(path):
        tensors |= read_checkpoint(folder / piece)
    return tensors, path


def read_json(path: Path, why: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        why: what the file is there for, as the second half of a sentence.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    try:
        values = plain_json.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read {str(path)!r} ({reason_of(error)}): {why}; check the path or get the "
            "folder again."
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{str(path)!r} holds {type(values).__name__}, expected an object: {why}.")
    return values


def _candidates(stems: tuple[str, str]) -> tuple[str, ...]:
    safe, pickled = stems
    return (
        f"{safe}.safetensors",
        f"{safe}.safetensors.index.json",
        f"{safe}.fp16.safetensors",
        f"{safe}.safetensors.index.fp16.json",
        f"{pickled}.bin",
        f"{pickled}.bin.index.json",
        f"{pickled}.fp16.bin",
    )


def _pieces(index: Path) -> list[str]:
    """The files that an index names, each once; they lie beside it."""
    places = read_json(index, "it says which file holds which weight").get("weight_map")
    names = set(places.values()) if isinstance(places, dict) else set()
    plain = {name for name in names if isinstance(name, str) and Path(name).name == name}
    if not plain or plain != names:
        raise UserError(
            f"{str(index)!r} has no weight_map that gives a file beside it for every weight; get "
            "the folder again."
        )
    return sorted(plain)


def _as_today(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names and in the shapes that diffusers gives them today."""
    renamed = {}
    for key, tensor in tensors.items():
        old = _OLD.fullmatch(key)
        name = f"{old[1]}.{_OLD_NAMES[old[2]]}.{old[3]}" if old else key
        is_convolution = tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
        renamed[name] = (
            tensor.flatten(1) if is_convolution and _PROJECTION.fullmatch(name) else tensor
        )
    return renamed
