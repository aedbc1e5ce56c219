"""How much memory a step needs beside what stays: counted on tensors that have a shape and no data.

Every storage that an operation makes is followed from its making to its end, through forward and
backward, so recomputation and temporaries count as they fall.
"""

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """Follows the storages that operations make; those of `known` tensors are not counted."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._seen = {id(t.untyped_storage()): t.untyped_storage() for t in known}
        self._followed: dict[int, weakref.ref] = {}
        self._changes: list[tuple[int, int]] = []  # (number of the storage, bytes more or less)
        self._numbers: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return out

    def peak(self, without: Iterable[Tensor] = ()) -> int:
        """Most bytes that were there at one time, the storages of `without` not counted."""
        left_out = {self._numbers.get(id(t.untyped_storage())) for t in without}
        live = most = 0
        for number, change in self._changes:
            if number not in left_out:
                live += change
                most = max(most, live)
        return most

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._seen or key in self._followed:
            return
        number, size = len(self._changes), storage.nbytes()
        self._numbers[key] = number
        self._changes.append((number, size))

        def ended(_: object) -> None:
            self._changes.append((number, -size))
            del self._followed[key]

        self._followed[key] = weakref.ref(storage, ended)


def activation_bytes(
    module: nn.Module,
    inputs: dict[str, Tensor],
    loss: Callable[[Any], Tensor],
    *,
    in_bfloat16: bool,
) -> int:
    """Most bytes that one forward and backward pass needs beside weights and their gradients.

    Args:
        module: on the meta device; what trains requires gradients. It is of no use afterwards.
        inputs: of its forward pass, by argument, on the meta device.
        loss: of what the forward pass returns.
        in_bfloat16: whether the forward pass is under autocast; an accelerator's, which takes more
            than a CPU's.
    """
    if in_bfloat16:
        _take_an_accelerators_norms(module)
    with FakeTensorMode():
        given, live = _on_shapes(module, inputs)
        with live:
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
                out = module(**given)
            loss(out).backward()
            del out
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            return live.peak(without=gradients)


def forward_bytes(module: nn.Module, inputs: dict[str, Tensor], *, in_bfloat16: bool) -> int:
    """Most bytes that one forward pass without gradients needs beside the weights.

    Args:
        module, inputs, in_bfloat16: as for `activation_bytes`.
    """
    if in_bfloat16:
        _take_an_accelerators_norms(module)
    with FakeTensorMode(), torch.no_grad():
        given, live = _on_shapes(module, inputs)
        with live, torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            out = module(**given)
            del out
            return live.peak()


def _take_an_accelerators_norms(module: nn.Module) -> None:
    """Norms as CUDA's autocast runs them: in float32, where the CPU's are in bfloat16.

    PyTorch plays an accelerator's forward pass on shapes alone, but no backward pass. The modules
    themselves are changed, since a mode is not in force while blocks are recomputed.
    """
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            layer.forward = partial(_in_float32, layer.forward)  # type: ignore[assignment]


def _in_float32(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return forward(x.float())


def _on_shapes(
    module: nn.Module, inputs: dict[str, Tensor]
) -> tuple[dict[str, Tensor], LiveStorages]:
    """Inputs of the present mode, and what follows all storages but theirs and the weights'."""
    _take_shapes_alone(module)
    given = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in inputs.items()}
    return given, LiveStorages([*module.parameters(), *module.buffers(), *given.values()])


def _take_shapes_alone(module: nn.Module) -> None:
    """Puts tensors of the present mode, on the CPU, in the place of all weights of `module`."""
    for layer in module.modules():
        for name, old in list(layer.named_parameters(recurse=False)):
            empty = torch.empty(old.shape, dtype=old.dtype)
            layer.register_parameter(name, nn.Parameter(empty, requires_grad=old.requires_grad))
        for name, old in list(layer.named_buffers(recurse=False)):
            setattr(layer, name, torch.empty(old.shape, dtype=old.dtype))
