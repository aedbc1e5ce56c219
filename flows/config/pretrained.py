"""Models that the user brings: where they are on this machine, and when they have changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.config.hub import HUB, fetch, hub_model
from videoldm_core.errors import UserError

if TYPE_CHECKING:
    from flows.config.run import RunConfig
    from videoldm_core.cascade.stage import Preset, Stage
    from videoldm_core.objectives.pretrained import Brought


def check_brought(table: "Preset") -> None:
    """Refuses a cascade that starts from a model nobody named, or from a folder of no use.

    Raises:
        UserError: names the stage, or the folder.
    """
    from videoldm_core.objectives.pretrained import Brought, check_folder

    for stage in table.stages:
        if not isinstance(stage.objective, Brought):
            continue
        check_folder(stage.objective)
        if stage.objective.source is None:
            kind = "an image model" if stage.objective.model == "image" else "a 4x upscaler"
            raise UserError(
                f"The preset {table.name!r} starts from {kind} that you bring, and none is named; "
                f"give a diffusers folder or a single file: pretrained.{stage.name}=PATH."
            )


def is_fetched(table: "Preset") -> bool:
    """Whether a model or a text encoder of the cascade is fetched over the network."""
    from videoldm_core.models.text.source import OpenClipText
    from videoldm_core.objectives.pretrained import Brought

    models = (row.objective for row in table.stages if isinstance(row.objective, Brought))
    texts = (text for text in (table.text, table.pixel_text) if isinstance(text, OpenClipText))
    return any((model.source or "").startswith(HUB) for model in models) or any(
        text.download for text in texts
    )


def local_stage(stage: "Stage") -> "Stage":
    """The row with the path its model has on this machine; a model of the hub is fetched.

    Raises:
        UserError: the hub does not answer, or has no such model.
    """
    from videoldm_core.objectives.pretrained import Brought

    objective = stage.objective
    if not isinstance(objective, Brought) or not (objective.source or "").startswith(HUB):
        return stage
    model = hub_model(objective.source or "", what=f"pretrained.{stage.name}")
    local = objective.model_copy(update={"source": str(fetch(model)), "origin": objective.source})
    return stage.model_copy(update={"objective": local})


def run_with_texts(run: "RunConfig", table: "Preset") -> "RunConfig":
    """The run with the sources of its text towers on this machine, for a process without network.

    Raises:
        UserError: one cannot be fetched.
    """
    from videoldm_core.models.text.source import ModelText, OpenClipText

    for field, text in (("text", table.text), ("pixel_text", table.pixel_text)):
        if isinstance(text, OpenClipText) and text.download:
            run = run.model_copy(update={field: text.located().model_dump(mode="json")})
        elif isinstance(text, ModelText):
            source = brought_model(local_stage(table.stage(text.stage))).source or ""
            run = run.model_copy(update={"pretrained": {**run.pretrained, text.stage: source}})
    return run


def brought_model(stage: "Stage") -> "Brought":
    """The model that a row brings."""
    from videoldm_core.objectives.pretrained import Brought

    assert isinstance(stage.objective, Brought), f"{stage.name} brings no model"
    return stage.objective


def content_of(objective: "Brought") -> dict[str, Any]:
    """What decides whether a brought model has changed: its files, not where they are."""
    source = objective.source or ""
    settings = objective.model_dump(mode="json", exclude={"origin"})  # the source says it
    if source and not source.startswith(HUB):
        settings["source"] = files_of(Path(source))
    settings["loras"] = [lora_files(path) for path in objective.loras]
    settings["encoder"] = files_of(objective.encoder) if objective.encoder else None
    return settings


def lora_files(path: Path) -> list[list[Any]]:
    """`files_of` a LoRA, with the config that may lie beside it and says its scale."""
    return files_of(path) + files_of(path.with_name("adapter_config.json"))


def files_of(path: Path) -> list[list[Any]]:
    """Name, size and time of a file, or of every file below a folder: what a change shows in."""
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(file, file.stat()) for file in files]
    return [[f.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns] for f, s in stats]
