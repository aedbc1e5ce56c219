"""Bytes between the processes of a group.

Never objects: torch would unpickle them, and what comes over a socket might be somebody else's.
"""

import torch
from torch import Tensor, distributed


def of_all_processes(content: bytes) -> list[bytes]:
    """What every process has to say, by rank; a collective call. Alone: just `content`."""
    if not distributed.is_initialized():
        return [content]
    where = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
    own = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(where)
    sizes = [int(size) for size in _gathered(torch.tensor([len(own)], device=where))]
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=where)
    padded[: len(own)] = own
    parts = _gathered(padded)
    return [part[:size].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


def _gathered(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, tensor)
    return [part.cpu() for part in parts]
