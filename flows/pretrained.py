"""Models that the user brings: where they are on this machine, and when they have changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.table import HUB
from videoldm_core.errors import UserError, reason_of

if TYPE_CHECKING:
    from videoldm_core.cascade import Preset, Stage
    from videoldm_core.objectives.brought import Brought

# A diffusers folder without the copies in other formats and precisions that hubs keep beside it.
WANTED = ("*/config.json", "*/*_config.json", "tokenizer/*", "*/*model.safetensors")
UNWANTED = ("safety_checker/*", "*.fp16.*")


def check_brought(table: "Preset") -> None:
    """Refuses a cascade that starts from a model nobody named.

    Raises:
        UserError: names the stage.
    """
    from videoldm_core.objectives.brought import Brought

    for stage in table.stages:
        if isinstance(stage.objective, Brought) and stage.objective.source is None:
            kind = "an image model" if stage.objective.model == "image" else "a 4x upscaler"
            raise UserError(
                f"The preset {table.name!r} starts from {kind} that you bring, and none is named; "
                f"give a diffusers folder or a single file: pretrained.{stage.name}=PATH."
            )


def local_stage(stage: "Stage") -> "Stage":
    """The row with the path its model has on this machine; a model of the hub is fetched.

    Raises:
        UserError: the hub does not answer, or has no such model.
    """
    from videoldm_core.objectives.brought import Brought

    objective = stage.objective
    if not isinstance(objective, Brought) or not (objective.source or "").startswith(HUB):
        return stage
    path = fetch(objective.source.removeprefix(HUB))  # type: ignore[union-attr]
    local = objective.model_copy(update={"source": str(path)})
    return stage.model_copy(update={"objective": local})


def fetch(name: str) -> Path:
    """The folder of a model of the Hugging Face hub, fetched once and kept in the hub's own cache.

    Raises:
        UserError: the hub does not answer, or has no such model.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot fetch {name!r} from the hub ({reason_of(error)}); check the name, or give the "
            "path of a folder or file."
        ) from error
    return Path(folder)


def content_of(objective: "Brought") -> dict[str, Any]:
    """What decides whether a brought model has changed: its files, not where they are."""
    source = objective.source or ""
    settings = objective.model_dump(mode="json")
    if source and not source.startswith(HUB):
        settings["source"] = files_of(Path(source))
    settings["loras"] = [files_of(path) for path in objective.loras]
    settings["encoder"] = files_of(objective.encoder) if objective.encoder else None
    return settings


def files_of(path: Path) -> list[list[Any]]:
    """Name, size and time of a file, or of every file below a folder: what a change shows in."""
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(file, file.stat()) for file in files]
    return [[f.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns] for f, s in stats]
