"""What each process holds of the parameters; ZeRO-3 parts them, all else leaves them whole."""

import torch
from torch import Tensor, nn


def local_tensors(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """What this process holds of each parameter: all of it, or its ZeRO-3 partition."""
    return {name: getattr(p, "ds_tensor", p).data for name, p in parameters.items()}


def forget_whole(parameters: dict[str, nn.Parameter]) -> None:
    """Makes ZeRO-3 gather parameters from their partitions at their next use.

    It keeps small ones whole from step to step, so a forward pass would not see that a partition
    was changed.
    """
    held = [p for p in parameters.values() if hasattr(p, "ds_id")]
    if held:
        held[0].partition(held)  # type: ignore[attr-defined] - DeepSpeed's; frees the whole ones


def local_part(parameter: nn.Parameter, full: Tensor) -> Tensor:
    """The part of a whole tensor that this process would hold for `parameter`."""
    shard = getattr(parameter, "ds_tensor", None)
    if shard is None:
        return full.to(parameter.device)
    size, rank = shard.numel(), torch.distributed.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
    padded = torch.zeros(size * torch.distributed.get_world_size(), dtype=full.dtype)
    padded[: full.numel()] = full.flatten()
    return padded[rank * size : (rank + 1) * size].view_as(shard).to(shard.device)


def is_first_process() -> bool:
    """Whether this process writes what all of them made."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
