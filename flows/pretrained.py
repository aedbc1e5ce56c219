"""Models that the user brings: where they are on this machine, and when they have changed."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.table import HUB
from videoldm_core.errors import UserError, reason_of

if TYPE_CHECKING:
    from flows.config import RunConfig
    from videoldm_core.cascade import Preset, Stage
    from videoldm_core.objectives.brought import Brought

# What is read of a diffusers folder beside weights; other files of it stay on the hub.
SETTINGS = (
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    *(f"{part}/scheduler_config.json" for part in ("scheduler", "low_res_scheduler")),
    *(f"tokenizer/{name}.json" for name in ("special_tokens_map", "tokenizer_config")),
)


def check_brought(table: "Preset") -> None:
    """Refuses a cascade that starts from a model nobody named, or from a folder of no use.

    Raises:
        UserError: names the stage, or the folder.
    """
    from videoldm_core.objectives.brought import Brought, check_folder

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
    from videoldm_core.models.text_source import OpenClipText
    from videoldm_core.objectives.brought import Brought

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
    from videoldm_core.objectives.brought import Brought

    objective = stage.objective
    if not isinstance(objective, Brought) or not (objective.source or "").startswith(HUB):
        return stage
    path = fetch(objective.source.removeprefix(HUB))  # type: ignore[union-attr]
    local = objective.model_copy(update={"source": str(path)})
    return stage.model_copy(update={"objective": local})


def run_with_texts(run: "RunConfig", table: "Preset") -> "RunConfig":
    """The run with the sources of its text towers on this machine, for a process without network.

    Raises:
        UserError: one cannot be fetched.
    """
    from videoldm_core.models.text_source import ModelText, OpenClipText

    for field, text in (("text", table.text), ("pixel_text", table.pixel_text)):
        if isinstance(text, OpenClipText) and text.download:
            run = run.model_copy(update={field: text.located().model_dump(mode="json")})
        elif isinstance(text, ModelText):
            source = brought_model(local_stage(table.stage(text.stage))).source or ""
            run = run.model_copy(update={"pretrained": {**run.pretrained, text.stage: source}})
    return run


def brought_model(stage: "Stage") -> "Brought":
    """The model that a row brings."""
    from videoldm_core.objectives.brought import Brought

    assert isinstance(stage.objective, Brought), f"{stage.name} brings no model"
    return stage.objective


def fetch(name: str) -> Path:
    """The folder of a model of the Hugging Face hub, fetched once and kept in the hub's own cache.

    Raises:
        UserError: the hub does not answer, has no such model, or none that can be read.
    """
    import huggingface_hub as hub

    # The client raises its transport's own errors too, which change with its version.
    try:
        files = {file.rfilename for file in hub.model_info(name).siblings or ()}
    except Exception as error:
        return _kept(name, error)
    wanted = wanted_files(files, name)
    try:
        return Path(hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        raise _unfetched(name, error) from None


def wanted_files(files: Collection[str], name: str) -> list[str]:
    """What of a repository's files is read: of weights the best copy, exact and unpickled first.

    Raises:
        UserError: there is no diffusers folder, or one without weights that can be read.
    """
    from videoldm_core.models.folders import DIFFUSERS, TRANSFORMERS, weight_file

    wanted = [file for file in SETTINGS if file in files]
    for part, stems in (("unet", DIFFUSERS), ("vae", DIFFUSERS), ("text_encoder", TRANSFORMERS)):
        own = {f.removeprefix(f"{part}/") for f in files if f.startswith(f"{part}/")}
        chosen = weight_file(own, stems)
        if chosen is not None:
            wanted += [f"{part}/{file}" for file in _with_pieces(chosen, own)]
        elif part != "text_encoder":  # an image model alone can be read too
            raise UserError(
                f"{name!r} of the hub has no weights of the {part} that can be read (it has "
                f"{', '.join(sorted(own)) or f'no {part}/'}); expected {part}/{stems[0]}"
                ".safetensors or .bin: name a diffusers folder, or give the path of a single file."
            )
    return wanted


def _with_pieces(chosen: str, files: Collection[str]) -> list[str]:
    """A file of weights, or an index with the files that it lists."""
    if not chosen.endswith(".json"):
        return [chosen]
    stem, _, rest = chosen.partition(".")
    suffix = ".bin" if rest.startswith("bin") else ".safetensors"
    half = r"\.fp16" if ".fp16" in chosen else ""
    piece = re.compile(rf"{stem}({half}-\d+-of-\d+|-\d+-of-\d+{half}){re.escape(suffix)}")
    return [chosen, *sorted(file for file in files if piece.fullmatch(file))]


def _kept(name: str, error: Exception) -> Path:
    """The folder as it was fetched before, where the hub does not answer now."""
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        raise _unfetched(name, error) from None


def _unfetched(name: str, error: Exception) -> UserError:
    return UserError(
        f"Cannot fetch {name!r} from the hub ({reason_of(error)}); check the name, or give the "
        "path of a folder or file."
    )


def content_of(objective: "Brought") -> dict[str, Any]:
    """What decides whether a brought model has changed: its files, not where they are."""
    source = objective.source or ""
    settings = objective.model_dump(mode="json")
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
