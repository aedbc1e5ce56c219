"""Reads a run: a YAML file, `key=value` overrides that win over it, and the checks of both."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import yaml
from pydantic import BeforeValidator

from flows.config.addresses import check_addresses, check_local_tracking, sqlite_address
from flows.config.paths import user_path
from flows.config.request_limits import limits_of
from flows.config.run import RunConfig
from flows.config.stage_table import merged, table_of
from videoldm_core.errors import UserError
from videoldm_core.records import nearest, parse_record
from videoldm_core.system.files import PRIVATE, unreadable, write_text_atomically

if TYPE_CHECKING:
    from videoldm_core.cascade.sampling import SamplingConfig
    from videoldm_core.cascade.stage import Preset

RUNFILES = Path(__file__).parents[1] / "runfiles"
LONGEST_FILM_S = 3600.0
UserPath = Annotated[Path, BeforeValidator(user_path)]


def load_run(runfile: str, overrides: list[str] | None = None) -> RunConfig:
    """Reads a run file and applies `key=value` overrides; a mistake is named with the nearest key.

    Args:
        runfile: a committed run ("tiny") or the path of a YAML file.
        overrides: "seed=3", "stages.temporal.steps=10", ...

    Raises:
        UserError: an unreadable file, an unknown key, preset, stage, label or class of boxes, a
            value of the wrong type, a file that is not there.
    """
    path = find_runfile(runfile)
    values = _read_yaml(path)
    for override in overrides or []:
        _apply(override, values)
    run = parse_record(RunConfig, values, where=f"the run file {path.name}")
    _check_is_text(run)
    check_addresses(run.model_dump(mode="json", exclude={"sample": {"prompt"}}))
    check_local_tracking(run.out, run.tracking_uri)
    table = table_of(run)
    _check_sample(run, table)
    limits_of(run, table)
    if run.videos is not None:
        _check_videos(run.videos, run.out)
    sample = run.sample
    brought = {
        "first_frame": sample.first_frame and sample.first_frame.absolute(),
        "backbone": sample.backbone and sample.backbone.absolute(),
        "loras": tuple(path.absolute() for path in sample.loras),
    }
    absolute = {
        "out": run.out.absolute(),
        "videos": run.videos and run.videos.absolute(),
        "sample": sample.model_copy(update=brought),
    }
    return run.model_copy(update=absolute)


def find_runfile(runfile: str) -> Path:
    """The path of a run file given by name or by path."""
    named = RUNFILES / f"{runfile}.yaml"
    if named.is_file():
        return named
    path = Path(runfile)
    if path.is_file():
        return path
    known = sorted(p.stem for p in RUNFILES.glob("*.yaml"))
    raise UserError(
        f"Unknown run file {runfile!r}: neither a file nor a committed run; "
        f"{nearest(runfile, known)}"
    )


def sampling_of(run: RunConfig) -> "SamplingConfig":
    """How videos are sampled, with the run's changes.

    Raises:
        UserError: unknown field, with the nearest known one.
    """
    from videoldm_core.cascade.sampling import SamplingConfig

    values = merged(SamplingConfig().model_dump(), run.sample.sampling)
    return parse_record(SamplingConfig, values, where="sample.sampling")


def tracking_uri(run: RunConfig) -> str:
    """Where MLflow keeps this run."""
    return run.tracking_uri or sqlite_address(run.out / "mlflow.db")


def store_run(run: RunConfig) -> Path:
    """Writes the resolved config beside the results."""
    path = run.out / "run.json"
    write_text_atomically(path, run.model_dump_json(indent=2) + "\n", mode=PRIVATE)
    return path


def _check_is_text(run: RunConfig) -> None:
    """Refuses what no record, page or database can hold: a run's settings are kept in all of them.

    Names of files inside the folder of videos may be any.
    """
    for key, value in [*run.model_dump().items(), ("the present folder", Path.cwd())]:
        text = json.dumps(value, default=str, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{key} holds {text[max(0, error.start - 20) : error.end]!r}, which is not UTF-8; "
                "rename that file or folder, or write the text anew."
            ) from None


def _check_videos(folder: Path, out: Path) -> None:
    """The folder is there, and the run's own videos would not become part of it."""
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # a folder above it may not be entered
        raise unreadable(folder, error) from None
    if not is_folder:
        raise UserError(
            f"videos = {str(folder)!r} is not a folder; give the folder that holds the videos."
        )
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"out = {str(out)!r} lies in videos = {str(folder)!r}, so that sampled videos would be "
            "trained on; give an out=FOLDER elsewhere."
        )


def _check_sample(run: RunConfig, table: "Preset") -> None:
    """Refuses words that the preset lacks, files that are not there, and what no stage learns."""
    from videoldm_core.cascade.checks.handoffs import told_vocabulary
    from videoldm_core.cascade.checks.sampling import check_asked
    from videoldm_core.cascade.checks.trained_states import Inputs
    from videoldm_core.diffusion.labels_boxes import check_request

    sample, words = run.sample, table.vocabulary
    check_request([words], sample.labels, sample.boxes)
    words.known_labels(sample.labels, where="sample.labels")
    words.known_boxes([box.named() for box in sample.boxes or ()], where="sample.boxes")
    named_roles = table.roles.model_dump(exclude_none=True).items()
    roles = {role: table.stage(name) for role, name in named_roles}
    check_asked(
        roles,
        passes=sample.passes,
        inputs=Inputs(
            prompt=sample.prompt,
            labels=sample.labels,
            has_boxes=sample.boxes is not None,
            has_first_frame=sample.first_frame is not None,
        ),
        sampling=sampling_of(run),
        vocabularies={role: told_vocabulary(stage, table) for role, stage in roles.items()},
    )
    named = [("first_frame", sample.first_frame), ("backbone", sample.backbone)]
    for name, path in [*named, *(("loras", lora) for lora in sample.loras)]:
        if path is not None and not path.exists():
            raise UserError(
                f"sample.{name} = {str(path)!r} does not exist; give the path of a file"
                f"{' or folder' if name == 'backbone' else ''} on this machine."
            )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        reason = _yaml_reason(error)
        raise UserError(f"Cannot read the run file {str(path)!r} as YAML: {reason}.") from error
    if not isinstance(values, dict):
        raise UserError(
            f"The run file {str(path)!r} holds {type(values).__name__}; "
            "expected 'key: value' lines."
        )
    return values


def _yaml_reason(error: Exception) -> str:
    """What is wrong and where, without the line itself: it is shown cut, and may hold a secret."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"{getattr(error, 'problem', 'it ends')}, line {mark.line + 1}, column {mark.column + 1}"


def _apply(override: str, values: dict[str, Any]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"Override {override!r} is not of the form key=value, for example seed=3.")
    *parents, last = key.split(".")
    inner = values
    for part in parents:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(
                f"Override {override!r}: {part!r} has no fields of its own; "
                f"set {part}=value instead."
            )
    inner[last] = _parse(key.split("."), text)


def _parse(path: list[str], text: str) -> Any:
    """The value of an override: a YAML scalar, but text where the field wants text (name=2024)."""
    kinds = _kinds_at(RunConfig, path)
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text
    wants_text = str in kinds or Path in kinds
    return text if wants_text and value is not None else value


def _kinds_at(kind: Any, path: list[str]) -> tuple[Any, ...]:
    """The types that the field at `path` accepts; none where the path leaves the typed records."""
    for name in path:
        field = getattr(kind, "model_fields", {}).get(name)
        if field is None:
            return ()
        kind = field.annotation
    # Of a list of paths, the whole is a YAML list, not a text.
    kinds = (kind,) if get_origin(kind) is tuple else (kind, *get_args(kind))
    return tuple(get_args(k)[0] if get_origin(k) is Annotated else k for k in kinds)
