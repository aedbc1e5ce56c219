"""Reading weights from files that may be hostile, truncated or of another model."""

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from videoldm_core.errors import UserError


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
