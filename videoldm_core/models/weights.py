"""Reading weights from files that may be hostile, truncated or of another model; holding them in
half the memory.
"""

import pickle
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from videoldm_core.errors import UserError, reason_of

# Layers whose weights autocast rounds to bfloat16 at every use. Norms are not among them: they
# compute in float32, and some refuse weights of another type than their input.
ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        UserError: the file is missing or not a whole safetensors file.
    """
    if not path.is_file():
        raise UserError(
            f"No weights at {str(path)!r}; run the stage that makes them, or name another."
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{str(path)!r} is not a whole safetensors file ({error}); copy or make it again."
        ) from None


def read_checkpoint(
    path: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .ckpt, .bin or .pt one, by name.

    Nothing in the file is executed: a pickle may hold tensors and plain containers alone.

    Args:
        wanted: which names to read; of a safetensors file the others stay on the disk.

    Raises:
        UserError: the file is missing, not whole, or holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118 (not a dict)
                return {name: file.get_tensor(name) for name in names}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(
            f"Cannot read {str(path)!r} ({reason_of(error)}): expected a .safetensors file or a "
            "plain state dict; check the path or get the file again."
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {k: v for k, v in content.items() if isinstance(v, Tensor) and wanted(k)}


def check_keys(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    where: str,
    may_miss: Collection[str] = (),
) -> None:
    """Refuses weights that do not fit.

    Raises:
        UserError: names the first missing, unknown or wrongly shaped key and what was expected.
    """
    for key, tensor in expected.items():
        if key not in found:
            if key not in may_miss:
                raise UserError(f"{where} lacks {key!r} (expected shape {tuple(tensor.shape)}).")
        elif found[key].shape != tensor.shape:
            raise UserError(
                f"{where}: {key!r} has shape {tuple(found[key].shape)}, "
                f"expected {tuple(tensor.shape)}; it belongs to another model."
            )
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise UserError(f"{where} holds {unknown[0]!r}, which this model does not have.")


def hold_frozen_in_bf16(module: nn.Module, trainable: Collection[nn.Parameter] = ()) -> None:
    """Halves the memory of what does not train, under autocast without a change to any value.

    Autocast rounds these weights at every use; held rounded, the forward pass is the same to the
    bit and saves the rounding. What is published of frozen parts is read from their files, never
    from here.
    """
    moving = {id(parameter) for parameter in trainable}
    for layer in module.modules():
        if isinstance(layer, ROUNDED):
            for parameter in layer.parameters(recurse=False):
                if id(parameter) not in moving:
                    parameter.data = parameter.data.to(torch.bfloat16)
