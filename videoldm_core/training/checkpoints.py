"""Checkpoints that are complete or absent, and do not depend on how the run was sharded.

One folder per checkpoint, holding for every player its trainable weights, Adam's moments and the
average, as full tensors by name: frozen weights are not in it, and any number of processes or ZeRO
stage can go on from it. There is no random state to keep: every draw belongs to a sample
(randomness.py).
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, distributed

from videoldm_core.errors import UserError
from videoldm_core.models.weights import check_keys, read_tensors
from videoldm_core.records import Record
from videoldm_core.system.files import disk_error, make_folder, publish_folder
from videoldm_core.training.engine import (
    full_moments,
    full_tensors,
    restore_moments,
)
from videoldm_core.training.partitions import is_first_process
from videoldm_core.training.train_module import Player

KEPT = 2
COMPLETE = "complete.json"


class Complete(Record):
    """What a checkpoint tells of itself, in its last file."""

    step: int
    sizes: dict[str, int] = {}  # bytes by file; none: written before sizes were told


def save_checkpoint(folder: Path, players: list[Player], step: int) -> None:
    """Publishes the state after `step` steps as `folder`/step_N; older ones but one are removed.

    All processes call it; the first writes.

    Raises:
        UserError: the disk is full or read-only; earlier checkpoints stay as they are.
    """
    states = {player.name: _state_of(player, step) for player in players}
    if is_first_process():
        _write(folder, states, step)
    if distributed.is_initialized():
        distributed.barrier()


def latest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest whole checkpoint and its step, or None; those passed over are named on stderr."""
    for path in sorted(folder.glob(f"step_*/{COMPLETE}"), reverse=True):
        found = _complete(path.parent)
        if isinstance(found, Complete):
            return path.parent, found.step
        if is_first_process():
            sys.stderr.write(f"Checkpoint {str(path.parent)!r} is passed over: {found}.\n")
    return None


def load_weights(path: Path, players: list[Player]) -> None:
    """Puts a checkpoint's weights into the players' modules, before their engines are made."""
    for player in players:
        tensors = _read(path, player)
        for name, parameter in player.trainable.items():
            parameter.data.copy_(tensors[f"weight/{name}"])


def load_optimizers(path: Path, players: list[Player], step: int) -> None:
    """Puts a checkpoint's optimizer states and averages into the players' engines."""
    for player in players:
        tensors = _read(path, player)
        moments = {k: t for k, t in tensors.items() if k.startswith("exp_avg")}
        if player.steps_at(step):
            restore_moments(player.engine, player.trainable, moments, player.steps_at(step))
        averages = {k.removeprefix("ema/"): t for k, t in tensors.items() if k.startswith("ema/")}
        player.ema.restore(averages)


def _state_of(player: Player, step: int) -> dict[str, Tensor]:
    state = {f"weight/{k}": t for k, t in full_tensors(player.trainable).items()}
    if player.steps_at(step):
        state |= full_moments(player.engine, player.trainable)
    return state | {f"ema/{k}": t for k, t in player.ema.full().items()}


def _complete(path: Path) -> Complete | str:
    """What a checkpoint tells of itself, or why it is not whole; no full stop."""
    try:
        told = Complete.model_validate_json((path / COMPLETE).read_text())
        for name, size in told.sizes.items():
            found = (path / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, expected {size}"
    except FileNotFoundError as error:
        return f"it has no {Path(error.filename).name}"
    except ValueError:
        return f"its {COMPLETE} is damaged"
    return told


def _write(folder: Path, states: dict[str, dict[str, Tensor]], step: int) -> None:
    final, part = folder / f"step_{step:08d}", folder / f".step_{step:08d}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        make_folder(folder)
        part.mkdir()
        for name, state in states.items():
            save_file({k: t.contiguous() for k, t in state.items()}, part / f"{name}.safetensors")
        sizes = {path.name: path.stat().st_size for path in part.iterdir()}
        (part / COMPLETE).write_text(Complete(step=step, sizes=sizes).model_dump_json())
        publish_folder(part, final)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise disk_error(final, error) from error
    _remove_older(folder)


def _remove_older(folder: Path) -> None:
    """Leaves the newest whole checkpoints; what is not whole must not count as one of them."""
    found = sorted(folder.glob("step_*"))
    whole = [path for path in found if isinstance(_complete(path), Complete)]
    for path in set(found) - set(whole[-KEPT:]):
        shutil.rmtree(path)


def _read(path: Path, player: Player) -> dict[str, Tensor]:
    where = path / f"{player.name}.safetensors"
    tensors = read_tensors(where)
    expected = {f"weight/{name}": player.shapes[name] for name in player.trainable}
    weights = {k: t for k, t in tensors.items() if k.startswith("weight/")}
    check_keys(expected, weights, where=repr(str(where)))
    averages = {k for k in tensors if k.startswith("ema/")}
    if averages != {k.replace("weight/", "ema/", 1) for k in expected}:
        raise UserError(f"{str(where)!r} is not whole; delete {str(path)!r} and run again.")
    return tensors
