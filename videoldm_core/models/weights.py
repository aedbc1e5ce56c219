"""Reading weights from files that may be hostile; holding them in half the memory."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from videoldm_core.errors import UserError, reason_of
from videoldm_core.models.pretrained.pickles import load_pickled, unreadable

# How often a pickle may give out the same numbers under other names, as tied weights are.
MOST_SHARING = 4
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
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{str(path)!r} is not a whole safetensors file ({reason_of(error)}); copy or make it "
            "again."
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
    if path.suffix == ".safetensors":
        return _read_safetensors(path, wanted)
    content = load_pickled(path)
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        raise unreadable(path, f"it holds a {type(content).__name__} in place of named tensors")
    found = {
        name: tensor
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, Tensor) and wanted(name)
    }
    _check_held(found, path)
    return found


def _check_held(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors that are larger than the file: a pickle may repeat one number for ever."""
    claimed = sum(tensor.nbytes for tensor in tensors.values())
    held = MOST_SHARING * path.stat().st_size
    if claimed > held:
        raise unreadable(path, f"its tensors would take {claimed} bytes, more than the file holds")


def _read_safetensors(path: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118 (not a dict)
            return {name: file.get_tensor(name) for name in names}
    except (OSError, RuntimeError, SafetensorError) as error:
        raise unreadable(path, reason_of(error)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says beside its tensors; nothing for files of other kinds.

    Raises:
        UserError: the file is missing or not whole.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise unreadable(path, reason_of(error)) from error


def check_keys(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    where: str,
    may_miss: Collection[str] = (),
) -> None:
    """Refuses weights that do not fit.

    Raises:
        UserError: names the first missing, unknown, wrongly shaped or wrongly typed key and what
            was expected.
    """
    for key, tensor in expected.items():
        if key not in found:
            if key not in may_miss:
                raise UserError(f"{where} lacks {key!r} (expected shape {tuple(tensor.shape)}).")
            continue
        if found[key].shape != tensor.shape:
            raise UserError(
                f"{where}: {key!r} has shape {tuple(found[key].shape)}, "
                f"expected {tuple(tensor.shape)}; it belongs to another model."
            )
        if tensor.is_floating_point():
            check_floating(key, found[key], where=where)
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise UserError(f"{where} holds {unknown[0]!r}, which this model does not have.")


def check_floating(key: str, tensor: Tensor, *, where: str) -> None:
    """Refuses a weight that is no real number: quantised or boolean ones mean nothing when cast.

    Raises:
        UserError: names the key and its type.
    """
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(
            f"{where}: {key!r} is of type {kind}, expected floating point; give the model's own "
            "weights, not quantised ones."
        )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Gives a module, built on no device, copies of `tensors` in float32.

    Raises:
        UserError: they do not fit; see `check_keys`.
    """
    check_keys(module.state_dict(), tensors, where=where)
    # The tensors of a safetensors file are pages of it, which may be overwritten.
    floats = {name: t.to(torch.float32, copy=True) for name, t in tensors.items()}
    module.load_state_dict(floats, assign=True)


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
