"""Pickled checkpoints, opened so that nothing in them is executed."""

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from videoldm_core.errors import UserError, reason_of


class _Inert:
    """In the place of something that is not read: takes whatever it is given and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What training leaves beside the weights, in sd-v1-4.ckpt among others: callbacks of
# pytorch_lightning, and numbers of numpy (scores, learning rates).
_LEFT = (
    *(
        f"{package}.callbacks.{name}"
        for package in ("pytorch_lightning", "lightning.pytorch")
        for name in (
            "model_checkpoint.ModelCheckpoint",
            "early_stopping.EarlyStopping",
            "lr_monitor.LearningRateMonitor",
            "timer.Timer",
        )
    ),
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (type(name.rpartition(".")[2], (_Inert,), {}), name) for name in _LEFT
]
_REFUSED = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")


def load_pickled(path: Path) -> object:
    """What a .ckpt, .bin or .pt file holds: tensors and plain containers.

    Raises:
        UserError: the file is missing, damaged, or holds anything else; names the class.
    """
    _check_stored(path)
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of a TorchScript file is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, reason_of(error)) from error
    except Exception as error:  # a damaged pickle is a program that can fail in any way
        refused = _REFUSED.search(str(error))
        if refused:
            raise UserError(
                f"Cannot read {str(path)!r}: it holds a {refused[1]}, which could run code; "
                "expected tensors alone: convert the file to safetensors where you trust it, and "
                "give that."
            ) from error
        if "TorchScript" in str(error):
            raise UserError(
                f"Cannot read {str(path)!r}: it is a TorchScript program, as OpenAI's CLIP is "
                "given out; expected tensors alone: save its state_dict() as safetensors where you "
                "trust it, and give that."
            ) from error
        raise unreadable(path, f"a damaged pickle, {type(error).__name__}") from error


def _check_stored(path: Path) -> None:
    """Refuses a file whose parts would unfold to more than it has: PyTorch stores them as they are.

    Raises:
        UserError: says to how much.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            size = sum(part.file_size for part in parts.infolist())
        is_whole = size <= path.stat().st_size
    except (OSError, zipfile.BadZipFile, ValueError):
        return  # missing, or of PyTorch's older format, which reads no more than the file has
    if not is_whole:
        raise unreadable(path, f"its parts are packed and would take {size} bytes")


def unreadable(path: Path, reason: str) -> UserError:
    """The sentence for a file of weights that cannot be read."""
    return UserError(
        f"Cannot read {str(path)!r} ({reason}): expected a .safetensors file or a plain state "
        "dict; check the path or get the file again."
    )
